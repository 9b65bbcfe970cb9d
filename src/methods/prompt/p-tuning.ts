/**
 * P-tuning (Liu et al., arXiv 2103.10385): a prompt [T, C] in front of every row's embeddings, as in prompt tuning, but
 * made by an encoder of trained vectors: MLP(E), or MLP(LSTM(E)) with a bidirectional LSTM (§3.2). Fields, encoders and
 * file are PEFT's (tuners/p_tuning); its file holds the prompt, the encoder is kept beside it.
 */
import { z } from 'zod';
import { gradEnabled, ops, type Tensor } from '../../tensor/index.ts';
import { type Method, ParameterInit } from '../shared/index.ts';
import { type Encoder, requireSpace, Vectors, virtualAdapter, virtualFields } from './virtual-tokens.ts';

const pTuningConfig = z
  .strictObject({
    ...virtualFields,
    encoder_reparameterization_type: z
      .enum(['MLP', 'LSTM'])
      .default('MLP')
      .describe('Encoder: three linear layers, or a bidirectional LSTM and two linear layers.'),
    encoder_hidden_size: z
      .int()
      .positive()
      .nullish()
      .describe('Width inside the encoder. Default: the width of the model.'),
    encoder_num_layers: z.int().positive().default(2).describe('Layers of the LSTM.'),
    encoder_dropout: z
      .number()
      .min(0)
      .lt(1)
      .default(0)
      .describe('Share that is dropped between the LSTM’s layers while training.'),
  })
  .describe('A prompt that a trained encoder makes (arXiv 2103.10385). Fields and defaults are PEFT’s.');

type PTuningConfig = z.infer<typeof pTuningConfig>;

/** The encoder with PyTorch's initial values: a linear layer's uniform in ±1/√in, an LSTM's in ±1/√hidden. */
function encoderOf(config: PTuningConfig, width: number, seed: number): Encoder {
  using draws = new ParameterInit(seed);
  const inner = config.encoder_hidden_size ?? width;
  const parameters = new Map<string, Tensor>();
  const made = (name: string, shape: number[], bound: number) => {
    const tensor = draws.uniform(shape, bound);
    parameters.set(name, tensor);
    return tensor;
  };
  const embedding = draws.normal([config.num_virtual_tokens, width], 1);
  parameters.set('embedding.weight', embedding);
  const linear = (name: string, from: number, to: number) => {
    const [weight, bias] = [made(`${name}.weight`, [to, from], from ** -0.5), made(`${name}.bias`, [to], from ** -0.5)];
    return (x: Tensor) => ops.linear(x, weight, bias);
  };
  const steps: ((x: Tensor) => Tensor)[] = [];
  if (config.encoder_reparameterization_type === 'LSTM') {
    const layers = config.encoder_num_layers;
    const weights: Tensor[] = [];
    for (let layer = 0; layer < layers; layer++) {
      for (const direction of ['', '_reverse']) {
        const at = (name: string) => `lstm_head.${name}_l${layer}${direction}`;
        for (const [name, shape] of [
          ['weight_ih', [4 * inner, layer === 0 ? width : 2 * inner]],
          ['weight_hh', [4 * inner, inner]],
          ['bias_ih', [4 * inner]],
          ['bias_hh', [4 * inner]],
        ] as [string, number[]][]) {
          weights.push(made(at(name), shape, inner ** -0.5));
        }
      }
    }
    steps.push((x) => {
      const zeros = ops.zeros([2 * layers, 1, inner]);
      const row = ops.unsqueeze(x, 1);
      const dropout = config.encoder_dropout;
      const [y] = ops.lstm(row, [zeros, zeros], weights, true, layers, dropout, gradEnabled(), true, false);
      return ops.reshape(y, [x.size(0), 2 * inner]);
    });
    steps.push(linear('mlp_head.0', 2 * inner, 2 * inner), ops.relu, linear('mlp_head.2', 2 * inner, width));
  } else {
    steps.push(linear('mlp_head.0', width, inner), ops.relu, linear('mlp_head.2', inner, inner));
    steps.push(ops.relu, linear('mlp_head.4', inner, width));
  }
  return { parameters, forward: () => steps.reduce((x, step) => step(x), embedding) };
}

export const pTuning: Method<PTuningConfig> = {
  name: 'p-tuning',
  peftType: 'P_TUNING',
  config: pTuningConfig,

  attach(model, config, seed) {
    const { num_virtual_tokens: length, encoder_num_layers: layers, encoder_reparameterization_type: type } = config;
    requireSpace(model, length);
    const vectors = new Vectors([length, model.width], encoderOf(config, model.width, seed));
    const port = { prompt: { length, vectors: () => vectors.value() } };
    return virtualAdapter(model, 'p-tuning', config, vectors, port, {
      savedConfig: () => ({ encoder_hidden_size: config.encoder_hidden_size ?? model.width }),
      // As in PEFT.
      warnings: type === 'MLP' && layers !== 2 ? ['encoder_num_layers is ignored: the MLP has three layers'] : [],
    });
  },
};

/**
 * P-tuning (Liu et al., arXiv 2103.10385): a prompt [T, C] before every row's embeddings, as in prompt tuning, but computed by an
 * encoder of trained vectors E: MLP(E), or MLP(LSTM(E)) with a bidirectional LSTM (§3.2). Fields, encoders and file are PEFT's
 * (tuners/p_tuning); its file holds the prompt, and Graft keeps the encoder in a file beside it.
 */
import { z } from 'zod';
import { dropout, gradEnabled, ops, type Tensor } from '../../tensor/index.ts';
import { type Method, ParameterInit } from '../shared/index.ts';
import { type Encoder, requireSpace, VirtualVectors, virtualAdapter, virtualFields } from './virtual-tokens.ts';

const pTuningConfig = z
  .strictObject({
    ...virtualFields,
    encoder_reparameterization_type: z
      .enum(['MLP', 'LSTM'])
      .default('MLP')
      .describe('The encoder. MLP: three linear layers; LSTM: a bidirectional LSTM and two linear layers.'),
    encoder_hidden_size: z
      .int()
      .positive()
      .nullish()
      .describe('Hidden size of the encoder. Default: the width of the model.'),
    encoder_num_layers: z.int().positive().default(2).describe('Number of layers of the LSTM.'),
    encoder_dropout: z
      .number()
      .min(0)
      .lt(1)
      .default(0)
      .describe('Dropout probability between the layers of the LSTM, in training.'),
  })
  .describe('A prompt that a trained encoder computes (arXiv 2103.10385). Fields and defaults are PEFT’s.');

type PTuningConfig = z.infer<typeof pTuningConfig>;

/** Returns the encoder with PyTorch's initial values: uniform in ±1/√in for linear layers, in ±1/√hidden for an LSTM. */
function encoderOf(config: PTuningConfig, width: number, seed: number): Encoder {
  using init = new ParameterInit(seed);
  const hidden = config.encoder_hidden_size ?? width;
  const parameters = new Map<string, Tensor>();
  const uniform = (name: string, shape: number[], bound: number) => {
    const tensor = init.uniform(shape, bound);
    parameters.set(name, tensor);
    return tensor;
  };
  const embedding = init.normal([config.num_virtual_tokens, width], 1);
  parameters.set('embedding.weight', embedding);
  const linear = (name: string, inWidth: number, outWidth: number) => {
    const bound = inWidth ** -0.5;
    const [weight, bias] = [
      uniform(`${name}.weight`, [outWidth, inWidth], bound),
      uniform(`${name}.bias`, [outWidth], bound),
    ];
    return (x: Tensor) => ops.linear(x, weight, bias);
  };
  const steps: ((x: Tensor) => Tensor)[] = [];
  if (config.encoder_reparameterization_type === 'LSTM') {
    const layers = config.encoder_num_layers;
    const weights: Tensor[] = [];
    for (let layer = 0; layer < layers; layer++) {
      for (const direction of ['', '_reverse']) {
        for (const [name, shape] of [
          ['weight_ih', [4 * hidden, layer === 0 ? width : 2 * hidden]],
          ['weight_hh', [4 * hidden, hidden]],
          ['bias_ih', [4 * hidden]],
          ['bias_hh', [4 * hidden]],
        ] as [string, number[]][]) {
          weights.push(uniform(`lstm_head.${name}_l${layer}${direction}`, shape, hidden ** -0.5));
        }
      }
    }
    steps.push((x) => {
      const zeros = ops.zeros([2, 1, hidden]);
      const drops = config.encoder_dropout > 0 && gradEnabled();
      // Layer by layer, as the operator's own dropout draws from a generator that all threads share.
      let y = ops.unsqueeze(x, 1);
      for (let layer = 0; layer < layers; layer++) {
        if (layer > 0 && drops) y = dropout(y, config.encoder_dropout);
        const perLayer = weights.slice(8 * layer, 8 * layer + 8);
        [y] = ops.lstm(y, [zeros, zeros], perLayer, true, 1, 0, false, true, false);
      }
      return ops.reshape(y, [x.size(0), 2 * hidden]);
    });
    steps.push(linear('mlp_head.0', 2 * hidden, 2 * hidden), ops.relu, linear('mlp_head.2', 2 * hidden, width));
  } else {
    steps.push(linear('mlp_head.0', width, hidden), ops.relu, linear('mlp_head.2', hidden, hidden));
    steps.push(ops.relu, linear('mlp_head.4', hidden, width));
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
    const vectors = new VirtualVectors([length, model.width], encoderOf(config, model.width, seed));
    const port = { prompt: { length, vectors: () => vectors.value() } };
    return virtualAdapter(model, 'p-tuning', config, vectors, port, {
      savedConfig: () => ({ encoder_hidden_size: config.encoder_hidden_size ?? model.width }),
      // As in PEFT.
      warnings: type === 'MLP' && layers !== 2 ? ['encoder_num_layers is ignored: the MLP has three layers'] : [],
    });
  },
};

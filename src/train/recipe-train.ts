/** The section `train` of a recipe. */
import { z } from 'zod';
import { GraftError } from '../base/index.ts';
import { devicePattern } from '../engine/index.ts';
import { precisions } from '../nn/index.ts';
import { optimizerConfig, optimizerSettings, scheduleConfig } from '../optim/index.ts';

/** Settings of the optimizer that `train` takes directly too. */
const optimizerFields = ['beta1', 'beta2', 'eps', 'weight_decay'] as const;

export const trainSchema = z.strictObject({
  optimizer: optimizerConfig.prefault({ type: 'adamw' } as never).describe('The optimizer and its settings.'),
  ...(Object.fromEntries(
    optimizerFields.map((name) => [
      name,
      z.number().optional().describe(`Short for optimizer.${name}, where the optimizer has it.`),
    ]),
  ) as Record<(typeof optimizerFields)[number], z.ZodOptional<z.ZodNumber>>),
  lr: z.number().positive().default(2e-4).describe('Peak learning rate.'),
  head_lr: z
    .number()
    .positive()
    .optional()
    .describe('Peak learning rate of the task’s head, and of an output layer to the vocabulary. Default: lr.'),
  layer_lr_decay: z
    .number()
    .positive()
    .max(1)
    .optional()
    .describe(
      'Factor of the learning rate from a layer to the one below it (ULMFiT, arXiv 1801.06146): the last layer and what comes after it learn with lr, the one below with lr times the factor, the embeddings with the lowest. 0.7 to 0.95 are usual. Default: 1.',
    ),
  epochs: z.number().positive().default(1).describe('Passes over the training rows.'),
  steps: z.int().positive().optional().describe('Optimizer steps, instead of epochs.'),
  batch_size: z.int().positive().default(8).describe('Rows of one optimizer step.'),
  micro_tokens: z
    .int()
    .positive()
    .optional()
    .describe(
      'Tokens of a micro-batch at most, which is what is in memory at one time; the gradient does not depend on it. Default: chosen for the free memory and the processor.',
    ),
  gradient_checkpointing: z
    .boolean()
    .optional()
    .describe(
      'Keep only the input of each block, and compute its activations again in the backward pass: the same losses, about a third more time, less memory (SmolLM2-135M, rows of 2,048 tokens: 1.4 GB instead of 2.6). For long rows and large models. Default: false.',
    ),
  keep_activations: z
    .union([z.literal('auto'), z.boolean()])
    .default('auto')
    .describe(
      'Where the lowest blocks compute the same in every step, since nothing in or below them is trained, what they compute is kept for the next epochs, in kept-activations.bin in the run directory, until the run ends: the same losses, in less time. auto: wherever it can be, in at most half of the free disk; true: the run does not start where not all of it can be kept; false: it is computed again in each epoch. In a run of several epochs these blocks compute one row at a time, kept or not, so that the last bits of a row do not depend on the others; with rows of less than about 100 tokens that takes longer.',
    ),
  schedule: scheduleConfig.shape.type,
  warmup_steps: scheduleConfig.shape.warmup_steps,
  warmup_ratio: scheduleConfig.shape.warmup_ratio,
  max_grad_norm: z.number().positive().optional().describe('Clips the 2-norm of all gradients together to this value.'),
  zero: z
    .strictObject({
      stage: z
        .union([z.literal(0), z.literal(1), z.literal(2), z.literal(3)])
        .default(0)
        .describe(
          'What each of several processes keeps a share of instead of the whole (ZeRO): 0 nothing; 1 the state of the optimizer; 2 and the gradients; 3 and the weights, frozen ones too, of which a block is gathered while it runs, forward and backward. The losses are the same.',
        ),
    })
    .prefault({})
    .describe('How a run of several processes is divided among them (`graft launch`).'),
  offload: z
    .strictObject({
      weights: z
        .boolean()
        .default(false)
        .describe(
          'Frozen weights stay in files, which are read as they are needed and dropped where memory is short, so that a model larger than the memory trains: in those of the model where they hold what is computed with (GGUF blocks with quantize: keep, safetensors of the same element type), else in a copy that the run writes and that is gone when it ends. What is trained is in memory.',
        ),
      optimizer: z
        .boolean()
        .default(false)
        .describe(
          'The state of the optimizer is in a file, whose room on the disk is taken before the first step and is free again when the run ends.',
        ),
      dir: z.string().optional().describe('Directory for these files; they have no names. Default: the run directory.'),
    })
    .prefault({})
    .describe(
      'What is on the disk instead of in memory: the same losses, in more time where the memory does not hold it besides.',
    ),
  device: z
    .string()
    .regex(devicePattern, 'must be auto, cpu, cuda, or a GPU such as cuda:1')
    .default('auto')
    .describe(
      'Where the run computes: auto, the first NVIDIA GPU that can be used, else the processor; cpu; cuda; or of several GPUs cuda:1.',
    ),
  threads: z.int().positive().optional().describe('Processor threads; default: all cores.'),
  precision: z
    .enum(['auto', ...precisions])
    .default('auto')
    .describe(
      'Precision of matrix products with frozen weights. mixed: the forward pass, and so every loss, in float32, and the factors of backward products rounded to bfloat16; bfloat16: the factors of all products; on a GPU the dense weights are held in it too, and what is trained is float32. auto: on the processor mixed where it multiplies bfloat16 faster, on a GPU bfloat16 where it has that and the base itself is not trained, else float32.',
    ),
  seed: z.int().nonnegative().default(0).describe('Decides the initial values, the order of the rows, and dropout.'),
});

export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * `train.weight_decay` is short for `train.optimizer.weight_decay`, and so are the other settings that most optimizers have.
 * @throws GraftError 'usage' where both are given, or the optimizer has no such setting
 */
export function withOptimizer(value: unknown, place: string): unknown {
  if (!isObject(value) || !isObject(value.train)) return value;
  const { optimizer = {}, ...train } = value.train;
  if (!isObject(optimizer)) return value;
  const settings: Record<string, unknown> = { type: 'adamw', ...optimizer };
  const allowed = optimizerSettings(settings.type);
  for (const name of optimizerFields) {
    if (train[name] === undefined) continue;
    if (allowed && !allowed.includes(name)) {
      throw new GraftError('usage', `train.${name} is no setting of the optimizer ${settings.type}`, {
        place,
        hint: `Leave it out; the settings of ${settings.type} are ${allowed.join(', ')}`,
      });
    }
    if (optimizer[name] !== undefined) {
      throw new GraftError('usage', `train.${name} and train.optimizer.${name} are the same setting`, {
        place,
        hint: 'Give one of the two',
      });
    }
    settings[name] = train[name];
    delete train[name];
  }
  return { ...value, train: { ...train, optimizer: settings } };
}

/** What ways of training a model take in memory, computed from its shapes: none of its weights is read. */
import { GraftError } from '../../base/index.ts';
import { bestPrecision } from '../../nn/index.ts';
import { optimizers } from '../../optim/index.ts';
import { type Quantize, quantizeModes } from '../../quant/index.ts';
import { activationBytes, openTaskModels, parseRecipe, planMemory, type RunMemory } from '../../train/index.ts';

/** A way of training, and what it takes in memory. */
export interface MemoryChoice {
  /** As in a recipe's `method`. */
  readonly method: readonly Readonly<Record<string, unknown>>[];
  /** How the weights are held. */
  readonly quantize: Quantize;
  /** Name of the optimizer, with its default settings. */
  readonly optimizer: string;
  /** Whether activations are computed again in the backward pass. */
  readonly gradientCheckpointing: boolean;
  /** What is on the disk instead of in memory: fields of a recipe's `train.offload`. */
  readonly offload: readonly ('weights' | 'optimizer')[];
  /** Tokens of a micro-batch by default. */
  readonly microTokens?: number;
  /** What a run takes. */
  readonly memory?: RunMemory;
  /** Whether that is free. */
  readonly fits?: boolean;
  /** Why the model cannot be trained so; the fields above are then absent. */
  readonly refused?: string;
}

const lora = { type: 'lora', r: 16, target_modules: 'all-linear' } as const;
const prefix = { type: 'prefix', num_virtual_tokens: 20 } as const;
const full = { type: 'full' } as const;
/** In turns of one step, so that few steps reach every layer. */
const layerwise = { type: 'layerwise', every: 1 } as const;
const plannedSteps = 200;
/** Tokens of a row that activations are computed for. */
const rowTokens = 256;

/** The choices by method: with each optimizer where it matters, each form of the weights, gradient checkpointing and what can be on the disk. */
function choicesOf(): MemoryChoice[] {
  const adamw = { optimizer: 'adamw', quantize: 'none', gradientCheckpointing: false, offload: [] } as const;
  return [
    ...Object.keys(optimizers).map((optimizer) => ({ ...adamw, method: [full], optimizer })),
    { ...adamw, method: [full], gradientCheckpointing: true },
    { ...adamw, method: [full], offload: ['optimizer'] },
    { ...adamw, method: [full, { ...layerwise, policy: 'lisa', layers: 2 }] },
    { ...adamw, method: [full, { ...layerwise, policy: 'badam' }] },
    ...quantizeModes.map((quantize) => ({ ...adamw, method: [lora], quantize })),
    { ...adamw, method: [lora], gradientCheckpointing: true },
    { ...adamw, method: [lora], quantize: 'nf4', gradientCheckpointing: true },
    { ...adamw, method: [lora], offload: ['weights'] },
    { ...adamw, method: [prefix] },
    { ...adamw, method: [prefix], quantize: 'nf4' },
  ];
}

/**
 * Returns what each choice takes for a model.
 * @param path of the model
 * @param free bytes of memory
 */
export function memoryChoices(path: string, free: number): MemoryChoice[] {
  const process_ = process.memoryUsage.rss();
  const before = { process: process_, precision: bestPrecision(), microTokens: undefined, steps: plannedSteps };
  // Activations depend on the method, and next to nothing on the form of the weights.
  const measured = new Map<string, ReturnType<typeof activationBytes>>();
  const choices = choicesOf();
  return choices.map((choice): MemoryChoice => {
    const { method, quantize, optimizer, gradientCheckpointing, offload } = choice;
    try {
      const recipe = parseRecipe({
        model: path,
        method,
        quantize,
        data: { train: [{}] },
        train: {
          optimizer: { type: optimizer },
          gradient_checkpointing: gradientCheckpointing,
          offload: Object.fromEntries(offload.map((name) => [name, true])),
        },
        run: { dir: 'none' },
      });
      using sketch = openTaskModels(recipe, path, [{ name: undefined, head: {} }], true);
      const measure = (model: Parameters<typeof activationBytes>[0]) => {
        const key = JSON.stringify(method);
        const known = measured.get(key) ?? activationBytes(model);
        known(choices.some((other) => other.gradientCheckpointing && JSON.stringify(other.method) === key)); // while the model exists
        measured.set(key, known);
        return known;
      };
      // An optimizer that updates in the backward pass has all rows of a step in one micro-batch.
      const stepTokens = recipe.train.batch_size * rowTokens;
      const largest = (limit: number) => {
        const tokens = Number.isFinite(limit) ? limit : stepTokens;
        const shape = { tokens, rows: Math.ceil(tokens / rowTokens), several: Number.isFinite(limit) };
        return sketch.models.map((model) => ({ model, ...shape }));
      };
      const { memory, microTokens } = planMemory(recipe, sketch, before, largest, measure);
      return { ...choice, memory, microTokens, fits: memory.totalMb * 2 ** 20 <= free };
    } catch (error) {
      if (error instanceof GraftError) return { ...choice, refused: error.message };
      throw error;
    }
  });
}

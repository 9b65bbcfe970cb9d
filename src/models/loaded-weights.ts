import { GraftError } from '../base/index.ts';
import {
  denseType,
  Embedding,
  type Kernels,
  kernelsOn,
  Linear,
  type ModelWeights,
  type TaskName,
  withRoundedInputs,
} from '../nn/index.ts';
import {
  type Activation,
  formatOfQuantize,
  formats,
  type Quantization,
  type Quantize,
  roundingOfFormat,
} from '../quant/index.ts';
import {
  currentDevice,
  type DType,
  detachFromScopes,
  Generator,
  mixSeed,
  ops,
  scope,
  Tensor,
} from '../tensor/index.ts';
import type { SharedWeights } from './shared-weights.ts';
import type { StoredWeight, WeightReader } from './weight-reader.ts';

/** The head of a model to load. */
export interface HeadOptions {
  /** Default: the task of the checkpoint's `architectures`, else the family's first. */
  readonly task?: TaskName;
  /** Names of the classes, for a new head or instead of the config's. */
  readonly labels?: readonly string[];
  /** Multi-label classification: a row may have several of the labels. */
  readonly multiLabel?: boolean;
  /** Tokens of the vocabulary, where an adapter added or removed some: the tables get as many rows, new ones with zeros. */
  readonly vocabRows?: number;
}

/** Options of `loadModel`. */
export interface LoadOptions extends HeadOptions {
  /** How the weights are held in memory. Default: none. */
  readonly quantize?: Quantize;
  /** How layers with weights in blocks take their inputs. Default: exact. */
  readonly activation?: Activation | undefined;
  /** The kernels of the forward and backward passes. Default: the fused ones where the device of new tensors has them. */
  readonly kernels?: Kernels;
  /** Element type of dense weights; the fused kernels need float32. Default: that of the precision in use (`usePrecision`). */
  readonly dtype?: DType;
  /** Refuse a checkpoint without the task's head, instead of initialising a new one. */
  readonly trainedHead?: boolean;
  /** Seed of the initial values of a new head. */
  readonly seed?: number;
  /** Weights that are in memory already, and take those that are read. Default: all are read. */
  readonly weights?: SharedWeights | undefined;
  /** No weight is read: the model has weights of the right shapes, all zeros in the memory of the largest. For planning. */
  readonly shapesOnly?: boolean;
  /** Is called with the number of weights that are loaded, and of all; it may throw to stop. */
  readonly progress?: (loaded: number, total: number) => void;
}

function withRounding<T extends Linear | Embedding>(layer: T, roundedAs: Quantization | undefined): T {
  if (roundedAs) layer.roundedAs = roundedAs;
  return layer;
}

/** `lm_head.bias` → `lm_head` */
const moduleOf = (key: string) => key.slice(0, Math.max(key.lastIndexOf('.'), 0));

/** Loading stops after this many problems. */
const maxProblems = 1000;

/** The weights of a checkpoint, held in memory as the options say. */
export class LoadedWeights implements ModelWeights {
  readonly kernels: Kernels;
  readonly dtype: DType;
  readonly #path: string;
  readonly #reader: WeightReader;
  readonly #stored: ReadonlyMap<string, StoredWeight>;
  readonly #prefixes: readonly string[];
  readonly #seed: number;
  /** Labels were given, so that a head of another size than the checkpoint's is initialised. */
  readonly #hasLabels: boolean;
  readonly #ignored: RegExp[] = [/rotary_emb\.inv_freq$/];
  readonly #quantize: Quantize;
  readonly #progress: LoadOptions['progress'];
  readonly #vocabRows: number | undefined;
  readonly #tensors: Tensor[] = [];
  readonly #used = new Set<string>();
  readonly #problems: string[] = [];
  /** Paths of the heads that the checkpoint does not have. */
  newHeads: string[] = [];
  parameters = 0;
  /** The number of classes of the next head, where their names differ from the checkpoint's. */
  relabelledClasses: number | undefined;

  constructor(
    path: string,
    reader: WeightReader,
    stored: ReadonlyMap<string, StoredWeight>,
    prefixes: readonly string[],
    options: LoadOptions,
  ) {
    this.dtype = options.dtype ?? denseType();
    const kernels = options.kernels ?? kernelsOn(currentDevice(), this.dtype);
    this.kernels = options.activation === 'q8' ? withRoundedInputs(kernels) : kernels;
    this.#path = path;
    this.#reader = reader;
    this.#stored = stored;
    this.#prefixes = prefixes.map((prefix) => `${prefix}.`);
    this.#seed = options.seed ?? 0;
    this.#hasLabels = options.labels !== undefined;
    this.#quantize = options.quantize ?? 'none';
    this.#progress = options.progress;
    this.#vocabRows = options.vocabRows;
  }

  has(key: string): boolean {
    return this.#stored.has(this.#keyOf(key));
  }

  /** Returns the key as the file has it: with one of the family's prefixes or without. */
  #keyOf(key: string): string {
    if (this.#stored.has(key)) return key;
    const prefix = this.#prefixes.find((candidate) => key.startsWith(candidate)) ?? '';
    const withoutPrefix = key.slice(prefix.length);
    const keys = ['', ...this.#prefixes].map((candidate) => candidate + withoutPrefix);
    return keys.find((candidate) => this.#stored.has(candidate)) ?? key;
  }

  ignore(keys: RegExp): void {
    this.#ignored.push(keys);
  }

  linear(path: string, outFeatures: number, inFeatures: number, bias = false): Linear {
    const { tensor, format, roundedAs } = this.#matrix(`${path}.weight`, outFeatures, inFeatures);
    const biasTensor = bias ? this.vector(`${path}.bias`, outFeatures) : undefined;
    return withRounding(new Linear(this.kernels, tensor, format, inFeatures, biasTensor), roundedAs);
  }

  transposed(path: string, outFeatures: number, inFeatures: number): Linear {
    const { tensor, format, roundedAs } = this.#matrix(`${path}.weight`, outFeatures, inFeatures, true);
    const linear = new Linear(this.kernels, tensor, format, inFeatures, this.vector(`${path}.bias`, outFeatures));
    linear.transposed = true;
    return withRounding(linear, roundedAs);
  }

  head(path: string, outFeatures: number, inFeatures: number, bias = false, trained = true): Linear {
    const [weightKey, biasKey] = [this.#keyOf(`${path}.weight`), this.#keyOf(`${path}.bias`)];
    const storedShape = this.#stored.get(weightKey)?.entry.shape;
    // Where labels were given, they replace a head for other classes, also for as many with other names.
    const isForOtherClasses = outFeatures === this.relabelledClasses || storedShape?.[0] !== outFeatures;
    if (storedShape && !(this.#hasLabels && isForOtherClasses && storedShape[1] === inFeatures)) {
      // Never packed: it is small and is trained.
      const weight = this.tensor(`${path}.weight`, [outFeatures, inFeatures]);
      return new Linear(
        this.kernels,
        weight,
        -1,
        inFeatures,
        bias ? this.vector(`${path}.bias`, outFeatures) : undefined,
      );
    }
    const count = this.newHeads.push(path);
    for (const key of [weightKey, biasKey]) this.#used.add(key);
    using s = scope();
    using generator = new Generator(mixSeed(trained ? this.#seed : 0, count));
    const weight = ops.mulScalar(ops.randn([outFeatures, inFeatures], { generator }), 0.02);
    this.parameters += outFeatures * (inFeatures + (bias ? 1 : 0));
    const zeros = bias ? this.#owned(s.keep(ops.zeros([outFeatures]))) : undefined;
    return new Linear(this.kernels, this.#owned(s.keep(weight)), -1, inFeatures, zeros);
  }

  tensor(key: string, shape: readonly number[]): Tensor {
    const stored = this.#find(key, shape);
    // Vectors (norms, biases) are small, and sums with them are float32.
    const dtype = this.dtype === 'bfloat16' && shape.length < 2 ? 'float32' : this.dtype;
    return this.#owned(stored ? this.#reader.dense(stored, dtype) : ops.zeros(shape, { dtype }));
  }

  embedding(path: string, rows: number, width: number): Embedding {
    const { tensor, format, roundedAs } = this.#matrix(`${path}.weight`, rows, width);
    return withRounding(new Embedding(tensor, format, width), roundedAs);
  }

  lmHead(path: string, embeddingPath: string, embedding: Embedding, tied: boolean): Linear {
    const [key, embeddingKey] = [this.#keyOf(`${path}.weight`), this.#keyOf(`${embeddingPath}.weight`)];
    const [own, shared] = [this.#stored.get(key), this.#stored.get(embeddingKey)];
    // Some checkpoints store the shared table a second time.
    if (tied && (!own || (shared && this.#reader.areEqual(own, shared)))) {
      this.#used.add(key);
      const head = new Linear(this.kernels, embedding.weight, embedding.format, embedding.width);
      return withRounding(head, embedding.roundedAs);
    }
    return this.linear(path, embedding.weight.size(0), embedding.width);
  }

  vector(key: string, size: number): Tensor {
    return this.tensor(key, [size]);
  }

  /** @throws GraftError 'mismatch' with all missing weights, wrong shapes and unused keys */
  finish(): void {
    // What is ignored are whole modules: a second tensor of a module that is used (the bias of a head) would be missing.
    const usedModules = new Set([...this.#used].map(moduleOf));
    const isIgnored = (key: string) =>
      !usedModules.has(moduleOf(key)) && this.#ignored.some((pattern) => pattern.test(key));
    const unused = [...this.#stored.keys()].filter((key) => !this.#used.has(key) && !isIgnored(key));
    if (unused.length > 0)
      this.#problems.push(
        `the model does not use ${unused.slice(0, 5).join(', ')}${unused.length > 5 ? ` and ${unused.length - 5} more` : ''}`,
      );
    if (this.#problems.length > 0) this.#refuse();
  }

  #refuse(): never {
    throw new GraftError(
      'mismatch',
      `the weights do not match the config: ${this.#problems.slice(0, 12).join('; ')}${this.#problems.length > 12 ? `; and ${this.#problems.length - 12} more` : ''}`,
      {
        place: this.#path,
        data: { problems: this.#problems },
      },
    );
  }

  release(): void {
    for (const tensor of this.#tensors.splice(0)) tensor.dispose();
  }

  /** Keeps the tensor until `release`. */
  #owned(tensor: Tensor): Tensor {
    this.#tensors.push(detachFromScopes(tensor));
    return tensor;
  }

  /** Returns the stored tensor `key`; undefined, with a problem noted, where it is missing or has another shape. */
  #find(key: string, shape: readonly number[]): StoredWeight | undefined {
    const stored = this.#stored.get(this.#keyOf(key));
    this.#used.add(this.#keyOf(key));
    this.#progress?.(this.#used.size, this.#stored.size);
    if (!stored) {
      this.#problems.push(`${key} [${shape.join(', ')}] is missing`);
      if (this.#problems.length > maxProblems) this.#refuse(); // the config's number of layers is far too large
      return undefined;
    }
    const storedShape = stored.entry.shape;
    if (storedShape.length !== shape.length || storedShape.some((n, i) => n !== shape[i])) {
      this.#problems.push(`${key} is [${storedShape.join(', ')}], the config requires [${shape.join(', ')}]`);
      return undefined;
    }
    this.parameters += shape.reduce((a, b) => a * b, 1);
    return stored;
  }

  /** Returns a table of the vocabulary with other rows than the file has; undefined for every other weight. */
  #resized(key: string, rows: number, width: number): Tensor | undefined {
    const storedShape = this.#stored.get(this.#keyOf(key))?.entry.shape;
    if (rows !== this.#vocabRows || storedShape?.length !== 2 || storedShape[0] === rows) return undefined;
    const stored = this.#find(key, [storedShape[0]!, width]);
    if (!stored) return undefined;
    this.parameters += (rows - storedShape[0]!) * width;
    return this.#reader.dense({ ...stored, modelRows: rows }, this.dtype);
  }

  /** Returns a weight [rows, width], held as `quantize` says, the native number of its format, and how the file has rounded it. */
  #matrix(
    key: string,
    rows: number,
    width: number,
    ofConv1d = false,
  ): { tensor: Tensor; format: number; roundedAs?: Quantization | undefined } {
    // Integers have the order of a linear layer's weight in any model.
    const transposed = ofConv1d && !this.#stored.get(this.#keyOf(key))?.integers;
    const resized = this.#resized(key, rows, width);
    if (resized) return { tensor: this.#owned(resized), format: -1 };
    const stored = this.#find(key, transposed ? [width, rows] : [rows, width]);
    if (!stored) return { tensor: this.#owned(Tensor.empty([0, width], this.dtype)), format: -1 };
    const held = (tensor: Tensor, format: number, roundedAs?: Quantization) => ({
      tensor: this.#owned(tensor),
      format,
      roundedAs,
    });
    const roundedAs = stored.integers ?? roundingOfFormat(stored.entry.format);
    const { nativeId } = formats[stored.entry.format];
    if (this.#quantize === 'keep' && nativeId !== undefined && !transposed)
      return held(this.#reader.raw(stored), nativeId, roundedAs);
    const packed = formatOfQuantize(this.#quantize);
    if (!packed) return held(this.#reader.dense(stored, this.dtype, transposed), -1, roundedAs);
    const { blockElements, nativeId: to } = formats[packed];
    if (width % blockElements !== 0) {
      throw new GraftError(
        'usage',
        `${key} is ${width} wide, and ${this.#quantize} needs a multiple of ${blockElements}`,
        { place: this.#path, hint: 'Load this model with quantize: none' },
      );
    }
    try {
      return held(this.#reader.packed(stored, packed, transposed), to);
    } catch (error) {
      if (!(error instanceof GraftError) || error.kind !== 'engine') throw error;
      throw new GraftError(
        'input',
        `${key} holds a number that is not finite, or too large for the scales of ${this.#quantize}`,
        { place: this.#path, hint: 'Load this model with quantize: none', cause: error },
      );
    }
  }
}

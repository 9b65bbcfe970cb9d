import { GraftError } from '../base/index.ts';
import { Embedding, fused, type Kernels, Linear, type TaskName, type Weights } from '../nn/index.ts';
import { formatOfQuantize, formats, type Quantize } from '../quant/index.ts';
import { type DType, detachFromScopes, Generator, mixSeed, ops, scope, Tensor } from '../tensor/index.ts';
import type { StoredReader, StoredWeight } from './reader.ts';

/** The head that a model is to have. */
export interface HeadOptions {
  /** What for; default: what the checkpoint's `architectures` say, else the family's first. */
  readonly task?: TaskName;
  /** Names of the classes, for a new head or in the place of the config's. */
  readonly labels?: readonly string[];
  /** A row may have several of the labels. */
  readonly multiLabel?: boolean;
}

export interface LoadOptions extends HeadOptions {
  readonly quantize?: Quantize;
  readonly kernels?: Kernels;
  /** Element type of dense weights; the fused kernels need float32. */
  readonly dtype?: DType;
  /** Refuse a checkpoint that lacks the task's head, in the place of making one. */
  readonly trainedHead?: boolean;
  /** Decides the values of a new head. */
  readonly seed?: number;
  readonly progress?: (loaded: number, total: number) => void;
}

/** Weights that do not fit, after which no more are looked for. */
const tooMany = 1000;

/** Weights out of a file, in the form that the options ask for. */
export class LoadedWeights implements Weights {
  readonly kernels: Kernels;
  readonly dtype: DType;
  readonly #path: string;
  readonly #reader: StoredReader;
  readonly #stored: ReadonlyMap<string, StoredWeight>;
  readonly #prefixes: readonly string[];
  readonly #seed: number;
  readonly #labelled: boolean;
  readonly #ignored: RegExp[] = [/rotary_emb\.inv_freq$/];
  readonly #quantize: Quantize;
  readonly #progress: LoadOptions['progress'];
  readonly #tensors: Tensor[] = [];
  readonly #used = new Set<string>();
  readonly #problems: string[] = [];
  fresh: string[] = [];
  parameters = 0;
  /** How many classes the next head has, if they are asked for by other names than the checkpoint's. */
  renamed: number | undefined;

  constructor(
    path: string,
    reader: StoredReader,
    stored: ReadonlyMap<string, StoredWeight>,
    prefixes: readonly string[],
    options: LoadOptions,
  ) {
    this.kernels = options.kernels ?? fused;
    this.dtype = options.dtype ?? 'float32';
    this.#path = path;
    this.#reader = reader;
    this.#stored = stored;
    this.#prefixes = prefixes.map((prefix) => `${prefix}.`);
    this.#seed = options.seed ?? 0;
    this.#labelled = options.labels !== undefined;
    this.#quantize = options.quantize ?? 'none';
    this.#progress = options.progress;
  }

  has(key: string): boolean {
    return this.#stored.has(this.#keyOf(key));
  }

  /** The file's key: with one of the family's prefixes or without, as the file has it. */
  #keyOf(key: string): string {
    if (this.#stored.has(key)) return key;
    const prefix = this.#prefixes.find((p) => key.startsWith(p)) ?? '';
    const bare = key.slice(prefix.length);
    return ['', ...this.#prefixes].map((p) => p + bare).find((k) => this.#stored.has(k)) ?? key;
  }

  ignore(keys: RegExp): void {
    this.#ignored.push(keys);
  }

  linear(path: string, outFeatures: number, inFeatures: number, bias = false): Linear {
    const { tensor, format } = this.#matrix(`${path}.weight`, outFeatures, inFeatures);
    const biasTensor = bias ? this.vector(`${path}.bias`, outFeatures) : undefined;
    return new Linear(this.kernels, tensor, format, inFeatures, biasTensor);
  }

  transposed(path: string, outFeatures: number, inFeatures: number): Linear {
    const { tensor, format } = this.#matrix(`${path}.weight`, outFeatures, inFeatures, true);
    const linear = new Linear(this.kernels, tensor, format, inFeatures, this.vector(`${path}.bias`, outFeatures));
    linear.transposed = true;
    return linear;
  }

  head(path: string, outFeatures: number, inFeatures: number, bias = false, trained = true): Linear {
    const [weightKey, biasKey] = [this.#keyOf(`${path}.weight`), this.#keyOf(`${path}.bias`)];
    const stored = this.#stored.get(weightKey)?.entry.shape;
    // A head of other classes makes room where the classes were asked for, of as many under other names too.
    const other = outFeatures === this.renamed || stored?.[0] !== outFeatures;
    if (stored && !(this.#labelled && other && stored[1] === inFeatures)) {
      // Never packed: it is small, and it is trained.
      const weight = this.tensor(`${path}.weight`, [outFeatures, inFeatures]);
      return new Linear(
        this.kernels,
        weight,
        -1,
        inFeatures,
        bias ? this.vector(`${path}.bias`, outFeatures) : undefined,
      );
    }
    const nth = this.fresh.push(path);
    for (const key of [weightKey, biasKey]) this.#used.add(key);
    using s = scope();
    using generator = new Generator(mixSeed(trained ? this.#seed : 0, nth));
    const weight = ops.mulScalar(ops.randn([outFeatures, inFeatures], { generator }), 0.02);
    this.parameters += outFeatures * (inFeatures + (bias ? 1 : 0));
    const zeros = bias ? this.#own(s.keep(ops.zeros([outFeatures]))) : undefined;
    return new Linear(this.kernels, this.#own(s.keep(weight)), -1, inFeatures, zeros);
  }

  tensor(key: string, shape: readonly number[]): Tensor {
    const stored = this.#find(key, shape);
    return this.#own(stored ? this.#reader.dense(stored, this.dtype) : ops.zeros(shape, { dtype: this.dtype }));
  }

  embedding(path: string, rows: number, width: number): Embedding {
    const { tensor, format } = this.#matrix(`${path}.weight`, rows, width);
    return new Embedding(tensor, format, width);
  }

  tied(path: string, embedding: Embedding): Linear {
    // Some checkpoints store the shared table twice.
    this.#used.add(this.#keyOf(`${path}.weight`));
    return new Linear(this.kernels, embedding.weight, embedding.format, embedding.width);
  }

  vector(key: string, size: number): Tensor {
    return this.tensor(key, [size]);
  }

  /** @throws GraftError 'mismatch' with all that was missing or misshapen */
  finish(): void {
    const extra = [...this.#stored.keys()].filter(
      (key) => !this.#used.has(key) && !this.#ignored.some((pattern) => pattern.test(key)),
    );
    if (extra.length > 0)
      this.#problems.push(
        `the model has no place for ${extra.slice(0, 5).join(', ')}${extra.length > 5 ? ` and ${extra.length - 5} more` : ''}`,
      );
    if (this.#problems.length > 0) this.#refuse();
  }

  #refuse(): never {
    throw new GraftError(
      'mismatch',
      `the weights do not fit the config: ${this.#problems.slice(0, 12).join('; ')}${this.#problems.length > 12 ? `; and ${this.#problems.length - 12} more` : ''}`,
      {
        place: this.#path,
        data: { problems: this.#problems },
      },
    );
  }

  release(): void {
    for (const tensor of this.#tensors.splice(0)) tensor.dispose();
  }

  #own(tensor: Tensor): Tensor {
    this.#tensors.push(detachFromScopes(tensor));
    return tensor;
  }

  #find(key: string, shape: readonly number[]): StoredWeight | undefined {
    const stored = this.#stored.get(this.#keyOf(key));
    this.#used.add(this.#keyOf(key));
    this.#progress?.(this.#used.size, this.#stored.size);
    if (!stored) {
      this.#problems.push(`${key} [${shape.join(', ')}] is missing`);
      if (this.#problems.length > tooMany) this.#refuse(); // a number of layers that is nonsense
      return undefined;
    }
    const got = stored.entry.shape;
    if (got.length !== shape.length || got.some((n, i) => n !== shape[i])) {
      this.#problems.push(`${key} is [${got.join(', ')}], the config asks for [${shape.join(', ')}]`);
      return undefined;
    }
    this.parameters += shape.reduce((a, b) => a * b, 1);
    return stored;
  }

  /** A [rows, width] weight in the form that `quantize` asks for. */
  #matrix(key: string, rows: number, width: number, transposed = false): { tensor: Tensor; format: number } {
    const stored = this.#find(key, transposed ? [width, rows] : [rows, width]);
    if (!stored) return { tensor: this.#own(Tensor.empty([0, width], this.dtype)), format: -1 };
    const own = (tensor: Tensor, format: number) => ({ tensor: this.#own(tensor), format });
    const { nativeId } = formats[stored.entry.format];
    if (this.#quantize === 'keep' && nativeId !== undefined && !transposed)
      return own(this.#reader.raw(stored), nativeId);
    using s = scope();
    const dense = (dtype = this.dtype) => {
      const tensor = this.#reader.dense(stored, dtype);
      return transposed ? ops.contiguous(ops.t(tensor)) : tensor;
    };
    const packed = formatOfQuantize(this.#quantize);
    if (!packed) return own(s.keep(dense()), -1);
    const { blockElements, nativeId: to } = formats[packed];
    if (width % blockElements !== 0) {
      throw new GraftError(
        'usage',
        `${key} is ${width} wide, and ${this.#quantize} needs a multiple of ${blockElements}`,
        { place: this.#path, hint: 'Load this model with quantize: none' },
      );
    }
    return own(s.keep(transposed ? ops.quantize(dense('float32'), to) : this.#reader.packed(stored, to)), to);
  }
}

import { GraftError } from '../base/index.ts';
import { type Binding, onStart } from '../engine/index.ts';
import { type DType, dtypeOf, dtypes } from './dtype.ts';
import { adopt, release } from './scope.ts';

let native: Binding;
onStart((binding) => {
  native = binding;
});

/** The engine's side of tensors, for the generated operators only. */
export const door = { call: (op: number, ...args: unknown[]): unknown => native.call(op, ...args) };

export type TypedArray =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | BigInt64Array;

const arrays = {
  float32: Float32Array,
  float64: Float64Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
  int16: Int16Array,
  int32: Int32Array,
  int64: BigInt64Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
} as const;

/**
 * A tensor in native memory. It lives until it is disposed: by the scope it was made in, or by `dispose()`. Operators
 * are functions (`ops.mm(a, b)`); a tensor only knows what it is and how to get its numbers out.
 */
export class Tensor implements Disposable {
  /** The native handle; of a disposed tensor one that no tensor has, since the engine gives handles out again. */
  id: number;
  #shape: readonly number[] | undefined;
  #dtype: DType | undefined;
  #disposed = false;

  /** Takes over a native handle; only the door and the generated operators call this. */
  constructor(id: number) {
    this.id = id;
    adopt(this);
  }

  /** Uninitialised memory. */
  static empty(shape: readonly number[], dtype: DType = 'float32'): Tensor {
    return new Tensor(native.empty(shape, dtypes[dtype].code));
  }

  /** A copy of `data`, its type that of the array (plain numbers: float32). @throws GraftError if sizes differ */
  static from(data: TypedArray | readonly number[], shape?: readonly number[], dtype?: DType): Tensor {
    const type = dtype ?? (Array.isArray(data) ? 'float32' : typeOfArray(data as TypedArray));
    const to = shape ?? [data.length];
    const numel = to.reduce((a, b) => a * b, 1);
    if (numel !== data.length) {
      throw new GraftError('engine', `${data.length} numbers do not fill the shape [${to.join(', ')}]`);
    }
    const tensor = Tensor.empty(to, type);
    native.copy(tensor.id, bytesOf(asArray(data, type)), true);
    return tensor;
  }

  get shape(): readonly number[] {
    if (!this.#shape) this.#describe();
    return this.#shape!;
  }

  get dtype(): DType {
    if (!this.#dtype) this.#describe();
    return this.#dtype!;
  }

  get numel(): number {
    return this.shape.reduce((a, b) => a * b, 1);
  }

  /** Bytes of its elements. */
  get nbytes(): number {
    return this.numel * dtypes[this.dtype].bytes;
  }

  /** Size of dimension `i`; negative counts from the end. */
  size(i: number): number {
    return this.shape.at(i)!;
  }

  /** "cpu" or "cuda:0". */
  get device(): string {
    return native.device(this.id);
  }

  get requiresGrad(): boolean {
    return native.requiresGrad(this.id);
  }

  set requiresGrad(flag: boolean) {
    native.setRequiresGrad(this.id, flag);
  }

  /** The gradient that backward passes have summed up, as a new handle on the same memory. */
  get grad(): Tensor | undefined {
    const id = native.grad(this.id);
    return id === null ? undefined : new Tensor(id);
  }

  set grad(value: Tensor | undefined) {
    native.setGrad(this.id, value?.id ?? null);
  }

  /** Adds d(this)/d(leaf) to the gradient of every leaf; `seed` is d(loss)/d(this) where this is not a scalar. */
  backward(seed?: Tensor): void {
    native.backward([this.id], seed ? [seed.id] : []);
  }

  /** The value of a tensor with one element. */
  item(): number {
    return native.item(this.id);
  }

  /** The numbers, copied out in row-major order (float16 and bfloat16 as raw bits). The tensor must be contiguous. */
  data(): TypedArray {
    const out = new arrays[this.dtype](this.numel);
    native.copy(this.id, bytesOf(out), false);
    return out;
  }

  /** The same as raw bytes, little-endian. The tensor must be contiguous. */
  bytes(): Uint8Array {
    const out = new Uint8Array(this.nbytes);
    native.copy(this.id, out, false);
    return out;
  }

  /**
   * The memory itself, to be written to. It stays until the event loop comes to free it, also when the tensor is disposed: only
   * for what lives long anyway. The tensor must be contiguous.
   */
  memory(): Uint8Array {
    return new Uint8Array(native.buffer(this.id));
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Gives the handle back; the memory goes with the last handle on it. Twice is harmless. */
  dispose(): void {
    if (this.#disposed) return;
    release(this);
    this.retire();
  }

  /** Marks as freed without telling the engine: the scope frees many at once. */
  retire(): void {
    this.#disposed = true;
    this.id = 0xffffffff;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #describe(): void {
    const [code, ...shape] = native.describe(this.id);
    this.#dtype = dtypeOf(code!);
    this.#shape = shape;
  }
}

const bytesOf = (array: TypedArray): Uint8Array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

function asArray(data: TypedArray | readonly number[], type: DType): TypedArray {
  const kind = arrays[type];
  if (data instanceof kind) return data;
  if (kind === BigInt64Array) return BigInt64Array.from(data as ArrayLike<number>, BigInt);
  return (kind as Float32ArrayConstructor).from(data as ArrayLike<number>);
}

function typeOfArray(data: TypedArray): DType {
  if (data instanceof Float32Array) return 'float32';
  if (data instanceof Float64Array) return 'float64';
  if (data instanceof Int32Array) return 'int32';
  if (data instanceof BigInt64Array) return 'int64';
  if (data instanceof Uint8Array) return 'uint8';
  if (data instanceof Int8Array) return 'int8';
  if (data instanceof Int16Array) return 'int16';
  throw new GraftError('engine', 'say the type: a Uint16Array may hold float16 or bfloat16');
}

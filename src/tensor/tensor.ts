import { GraftError } from '../base/index.ts';
import { type Binding, onStart } from '../engine/index.ts';
import { currentDevice, type Device, host, takesPinned } from './device.ts';
import { type DType, dtypeOf, dtypes } from './dtype.ts';
import { adopt, release } from './scope.ts';

let native: Binding;
onStart((binding) => {
  native = binding;
});

/** Calls an operator of the engine by its number; for the generated operators only. */
export const dispatcher = { call: (op: number, ...args: unknown[]): unknown => native.call(op, ...args) };

/** The typed arrays that tensors are made from and read into. */
export type TypedArray =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | BigInt64Array;

/** The typed array that holds the numbers of a type. */
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
 * A tensor in native memory. It lives until it is disposed: by the scope in which it was created, or by `dispose()`.
 * Operators are functions (`ops.mm(a, b)`); a tensor has its shape, its gradient and access to its numbers.
 */
export class Tensor implements Disposable {
  /** The native handle. Handles are reused, so a disposed tensor has one that no tensor can have. */
  id: number;
  #shape: readonly number[] | undefined;
  #dtype: DType | undefined;
  #disposed = false;

  /** @internal Takes ownership of a native handle; for this folder and the generated operators only. */
  constructor(id: number) {
    this.id = id;
    adopt(this);
  }

  /** Returns a tensor of uninitialised memory. @param device default: that of new tensors */
  static empty(shape: readonly number[], dtype: DType = 'float32', device?: Device): Tensor {
    return new Tensor(native.empty(shape, dtypes[dtype].code, device));
  }

  /** Returns uninitialised memory of the host, from which the device of new tensors copies as fast as it can. */
  static staging(shape: readonly number[], dtype: DType): Tensor {
    return new Tensor(native.empty(shape, dtypes[dtype].code, host, takesPinned(currentDevice())));
  }

  /**
   * Returns a tensor of the host on the bytes of an open file from byte `at` on: the kernel reads them when they are needed, and may drop them
   * again. The file may be closed afterwards, and must not become shorter.
   * @param shared what is written to the tensor goes to the file; else it stays in memory
   * @throws GraftError 'engine' where no number of this type can begin at that byte
   */
  static mapped(file: number, at: number, shape: readonly number[], dtype: DType, shared: boolean): Tensor {
    return new Tensor(native.map(file, at, shape, dtypes[dtype].code, shared));
  }

  /**
   * Returns a tensor with a copy of `data`; its type is that of the array (of plain numbers: float32), its shape one axis.
   * @throws GraftError 'engine' if the shape needs another number of elements
   */
  static from(data: TypedArray | readonly number[], shape?: readonly number[], dtype?: DType): Tensor {
    const type = dtype ?? (Array.isArray(data) ? 'float32' : dtypeOfArray(data as TypedArray));
    const sizes = shape ?? [data.length];
    const numel = sizes.reduce((a, b) => a * b, 1);
    if (arrays[type] === Uint16Array && !(data instanceof Uint16Array)) {
      throw new GraftError('engine', `a tensor of ${type} is made from raw bits, a Uint16Array`, {
        hint: 'Make it in float32, and convert it with ops.toCopy',
      });
    }
    if (numel !== data.length) {
      throw new GraftError('engine', `the shape [${sizes.join(', ')}] needs ${numel} numbers, but got ${data.length}`);
    }
    const tensor = Tensor.empty(sizes, type);
    native.copy(tensor.id, bytesOf(asArray(data, type)), true);
    return tensor;
  }

  /** The size of each dimension. */
  get shape(): readonly number[] {
    if (!this.#shape) this.#describe();
    return this.#shape!;
  }

  /** The element type. */
  get dtype(): DType {
    if (!this.#dtype) this.#describe();
    return this.#dtype!;
  }

  /** The number of elements. */
  get numel(): number {
    return this.shape.reduce((a, b) => a * b, 1);
  }

  /** The size of all elements in bytes. */
  get nbytes(): number {
    return this.numel * dtypes[this.dtype].bytes;
  }

  /** Returns the size of dimension `i`; a negative index counts from the end. */
  size(i: number): number {
    return this.shape.at(i)!;
  }

  /** Where the numbers are. */
  get device(): Device {
    return native.device(this.id);
  }

  /** Returns the tensor on a device: a copy, or where it is there already a new handle on the same memory. Gradients pass back. */
  to(device: Device): Tensor {
    return new Tensor(native.to(this.id, device));
  }

  /** Whether backward passes compute a gradient of this tensor. */
  get requiresGrad(): boolean {
    return native.requiresGrad(this.id);
  }

  set requiresGrad(flag: boolean) {
    native.setRequiresGrad(this.id, flag);
  }

  /** The gradient that backward passes have accumulated, as a new handle on the same memory. */
  get grad(): Tensor | undefined {
    const id = native.grad(this.id);
    return id === null ? undefined : new Tensor(id);
  }

  set grad(value: Tensor | undefined) {
    native.setGrad(this.id, value?.id ?? null);
  }

  /**
   * Calls `hook` in each backward pass when the gradient of this leaf is complete: once, after all uses of the leaf in that pass. The hook
   * may write to the leaf and free the gradient; what it throws ends the pass. It replaces an earlier hook; undefined: none.
   */
  onGradient(hook: (() => void) | undefined): void {
    native.onGradient(this.id, hook ?? null);
  }

  /** Adds d(this)/d(leaf) to the gradient of every leaf; `seed` is d(loss)/d(this), and needed where this is not a scalar. */
  backward(seed?: Tensor): void {
    native.backward([this.id], seed ? [seed.id] : []);
  }

  /** Returns the value of a tensor with one element. */
  item(): number {
    return native.item(this.id);
  }

  /** Returns a copy of the numbers in row-major order (float16 and bfloat16 as raw bits). The tensor must be contiguous. */
  data(): TypedArray {
    const numbers = new arrays[this.dtype](this.numel);
    native.copy(this.id, bytesOf(numbers), false);
    return numbers;
  }

  /** Returns a copy of the numbers as raw bytes, little-endian. The tensor must be contiguous. */
  bytes(): Uint8Array {
    const copy = new Uint8Array(this.nbytes);
    native.copy(this.id, copy, false);
    return copy;
  }

  /** Copies numbers into the tensor, which must be contiguous, from an array of its element type. */
  write(numbers: TypedArray): void {
    native.copy(this.id, bytesOf(numbers), true);
  }

  /** Lets `fill` write the numbers as raw bytes: into the tensor's own memory where that is the host's, else into what is then copied. */
  fillBytes(fill: (bytes: Uint8Array) => void): this {
    if (this.device === host) {
      fill(this.memory());
      return this;
    }
    const bytes = new Uint8Array(this.nbytes);
    fill(bytes);
    this.write(bytes);
    return this;
  }

  /**
   * Returns a writable view of the tensor's own memory, which must be contiguous and on the CPU. The memory is freed only when the event loop
   * turns, even if the tensor is disposed before: use it for long-lived tensors.
   */
  memory(): Uint8Array {
    return new Uint8Array(native.buffer(this.id));
  }

  /** Whether the tensor has been disposed. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /** Frees the handle; the memory is freed with its last handle. A second call does nothing. */
  dispose(): void {
    if (this.#disposed) return;
    release(this);
    this.retire();
  }

  /** Marks the tensor as disposed; the handle is freed by the caller, since a scope frees many at once. */
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
  const ArrayType = arrays[type];
  if (data instanceof ArrayType) return data;
  if (ArrayType === BigInt64Array) return BigInt64Array.from(data as ArrayLike<number>, BigInt);
  return (ArrayType as Float32ArrayConstructor).from(data as ArrayLike<number>);
}

function dtypeOfArray(data: TypedArray): DType {
  if (data instanceof Float32Array) return 'float32';
  if (data instanceof Float64Array) return 'float64';
  if (data instanceof Int32Array) return 'int32';
  if (data instanceof BigInt64Array) return 'int64';
  if (data instanceof Uint8Array) return 'uint8';
  if (data instanceof Int8Array) return 'int8';
  if (data instanceof Int16Array) return 'int16';
  throw new GraftError('engine', 'the dtype of a Uint16Array is ambiguous: float16 or bfloat16', {
    hint: 'Pass the dtype as the third argument',
  });
}

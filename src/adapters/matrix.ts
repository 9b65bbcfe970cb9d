import { GraftError } from '../base/index.ts';
import type { WeightSource } from '../io/index.ts';

/** Numbers of a matrix, row by row. */
export interface Matrix {
  readonly rows: number;
  readonly columns: number;
  readonly values: Float32Array;
}

/** A stored tensor's numbers as float32. @throws GraftError 'input' for types that are no floats */
function float32Values(source: WeightSource, name: string): Float32Array {
  const { format, bytes: size } = source.entries.get(name)!;
  const bytes = new Uint8Array(size);
  source.read(name, bytes);
  if (format === 'float32') return new Float32Array(bytes.buffer);
  const words = new Uint16Array(bytes.buffer);
  if (format === 'bfloat16') return new Float32Array(Uint32Array.from(words, (w) => w << 16).buffer);
  if (format === 'float16') return Float32Array.from(words, float16Value);
  throw new GraftError('input', `${name} is of the type ${format}`, { place: source.path });
}

/** A stored matrix as float32. @throws GraftError 'input' for other shapes and types */
export function readMatrix(source: WeightSource, name: string): Matrix {
  const { shape } = source.entries.get(name)!;
  if (shape.length !== 2) {
    throw new GraftError('input', `${name} is [${shape.join(', ')}], no matrix`, { place: source.path });
  }
  const [rows, columns] = shape as [number, number];
  return { rows, columns, values: float32Values(source, name) };
}

/** A number of IEEE 754's binary16. */
function float16Value(word: number): number {
  const [exponent, fraction] = [(word >> 10) & 31, word & 1023];
  const sign = word >> 15 ? -1 : 1;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

export function transposed({ rows, columns, values }: Matrix): Matrix {
  const turned = new Float32Array(values.length);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) turned[c * rows + r] = values[r * columns + c]!;
  return { rows: columns, columns: rows, values: turned };
}

/** One below the other. */
export function stacked(parts: readonly Matrix[]): Matrix {
  const values = new Float32Array(parts.reduce((sum, part) => sum + part.values.length, 0));
  let at = 0;
  for (const part of parts) {
    values.set(part.values, at);
    at += part.values.length;
  }
  return { rows: parts.reduce((sum, { rows }) => sum + rows, 0), columns: parts[0]!.columns, values };
}

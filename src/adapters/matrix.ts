import { GraftError } from '../base/index.ts';
import type { WeightSource } from '../io/index.ts';

/** A matrix in JavaScript's memory, so that conversion needs no engine. Values are row by row. */
export interface Matrix {
  readonly rows: number;
  readonly columns: number;
  readonly values: Float32Array;
}

/** The values of a stored tensor as float32. @throws GraftError 'input' for types that are not floats */
function float32Values(source: WeightSource, name: string): Float32Array {
  const { format, bytes: size } = source.entries.get(name)!;
  const bytes = new Uint8Array(size);
  source.read(name, bytes);
  if (format === 'float32') return new Float32Array(bytes.buffer);
  const words = new Uint16Array(bytes.buffer);
  if (format === 'bfloat16') return new Float32Array(Uint32Array.from(words, (w) => w << 16).buffer);
  if (format === 'float16') return Float32Array.from(words, float16Value);
  throw new GraftError(
    'input',
    `${name} has the type ${format}, and only float32, float16 and bfloat16 can be converted`,
    { place: source.path },
  );
}

/** A stored matrix as float32. @throws GraftError 'input' for other shapes and types */
export function readMatrix(source: WeightSource, name: string): Matrix {
  const { shape } = source.entries.get(name)!;
  if (shape.length !== 2) {
    throw new GraftError('input', `${name} has the shape [${shape.join(', ')}], which is not a matrix`, {
      place: source.path,
    });
  }
  const [rows, columns] = shape as [number, number];
  return { rows, columns, values: float32Values(source, name) };
}

/** The value of a word in IEEE 754's binary16. */
function float16Value(word: number): number {
  const [exponent, fraction] = [(word >> 10) & 31, word & 1023];
  const sign = word >> 15 ? -1 : 1;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** The transposed matrix: [rows, columns] → [columns, rows]. */
export function transposed({ rows, columns, values }: Matrix): Matrix {
  const result = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) result[column * rows + row] = values[row * columns + column]!;
  }
  return { rows: columns, columns: rows, values: result };
}

/** Matrices of the same width as one, each below the one before. */
export function stacked(parts: readonly Matrix[]): Matrix {
  const values = new Float32Array(parts.reduce((sum, part) => sum + part.values.length, 0));
  let at = 0;
  for (const part of parts) {
    values.set(part.values, at);
    at += part.values.length;
  }
  return { rows: parts.reduce((sum, { rows }) => sum + rows, 0), columns: parts[0]!.columns, values };
}

/** What a user asks for when a model is written in other formats, and whether any file can be so. */
import { GraftError } from '../base/index.ts';
import { ggufFormats, isGgufFormat, isIntegerFormat, type WeightFormat, weightFormats } from '../quant/index.ts';

/** Element types in which weights can be written unquantised. */
export type FloatFormat = 'float32' | 'float16' | 'bfloat16';

/** What a user asks for. */
export interface ExportChoice {
  /** Of the linear layers of the blocks. */
  readonly to: ExportFormat;
  /** Integers: the elements of a row that share a scale; absent: the row does. */
  readonly groupSize?: number | undefined;
  /** Of the table of embeddings and the output layer; none: float32. Default: q8_0 with blocks of GGUF, else none. */
  readonly embedding?: ExportFormat | 'none' | undefined;
}

/** A format that a whole model can be written in: no file has nf4, which weights have in memory only. */
export type ExportFormat = Exclude<WeightFormat, 'nf4'> | FloatFormat;

/** All of them: GGUF's, then those of a directory. */
export const exportFormats: readonly ExportFormat[] = [
  ...(ggufFormats as readonly ExportFormat[]),
  ...weightFormats.filter(isIntegerFormat),
];

export const isFloat = (format: ExportFormat): format is FloatFormat =>
  format === 'float32' || format === 'float16' || format === 'bfloat16';

/**
 * Returns what a user chose, undefined without `to`.
 * @throws GraftError 'usage' where the options contradict each other, or no file can hold the format
 */
export function exportChoice({
  to,
  groupSize,
  embedding,
  out,
  dtype,
}: {
  readonly to?: ExportFormat | undefined;
  readonly out: string;
  readonly dtype: FloatFormat;
} & Pick<ExportChoice, 'groupSize' | 'embedding'>): ExportChoice | undefined {
  const isFile = out.endsWith('.gguf');
  const formats = ggufFormats.join(', ');
  const refuse = (problem: string, hint: string) => new GraftError('usage', problem, { hint });
  if (to === undefined) {
    if (groupSize === undefined && embedding === undefined && !isFile) return undefined;
    const what = isFile ? 'a .gguf file' : groupSize === undefined ? 'embedding' : 'group_size';
    throw refuse(`${what} needs the format to write`, `Add to (--to): ${formats}; int2 to int8 for a directory`);
  }
  if (!isGgufFormat(to)) {
    if (isFile)
      throw refuse(
        `llama.cpp has no kernel for ${to}, so a .gguf file cannot hold it`,
        `Choose ${formats}, or a directory as out`,
      );
    requireOneFile(to, embedding);
    return { to, groupSize, embedding };
  }
  if (!isFile)
    throw refuse(
      `${to} is a format of GGUF, and '${out}' does not end in .gguf`,
      'Name a .gguf file as out, or choose int2 to int8',
    );
  if (groupSize !== undefined)
    throw refuse(
      `group_size is for integers: blocks of ${to} have their own size`,
      'Leave group_size out, or choose int2 to int8',
    );
  if (dtype !== 'float32')
    throw refuse(
      `dtype is not for GGUF files: their norms and biases are float32`,
      `Name ${dtype} as to or as embedding`,
    );
  requireOneFile(to, embedding);
  return { to, embedding };
}

/** @throws GraftError 'usage' for a mixture of GGUF's formats and others */
function requireOneFile(to: ExportFormat, embedding: ExportChoice['embedding']): void {
  if (embedding === undefined || embedding === 'none' || isFloat(embedding)) return;
  if (isGgufFormat(embedding) === isGgufFormat(to)) return;
  throw new GraftError('usage', `one file cannot hold both ${to} and ${embedding}`, {
    place: 'embedding',
    hint: isGgufFormat(to) ? `Choose one of ${ggufFormats.join(', ')}` : 'Choose int2 to int8, or none',
  });
}

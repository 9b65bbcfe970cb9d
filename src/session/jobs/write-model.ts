/** Writing a model in the formats that a user chose: a GGUF file, or a Hugging Face directory. */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { tokenizerFilesOf, tokenizerIfAny } from '../../data/index.ts';
import { type ExportChoice, formatsFor, openModel, requireGguf, saveGguf, saveModel } from '../../models/index.ts';
import type { Model, Rounding } from '../../nn/index.ts';
import { type Activation, type FormatName, isBlockFormat, isGgufFormat } from '../../quant/index.ts';
import type { JobContext } from '../job-context.ts';
import type { Progress } from './rows.ts';

/** A model that was written. */
export interface WrittenModel {
  /** The file, or the directory. */
  readonly out: string;
  /** Bytes of the file of its weights. */
  readonly bytes: number;
  /** Bytes of the stored weights of the model that it was made from. */
  readonly sourceBytes: number;
  /** What is not in it as asked, or is computed differently by llama.cpp: a sentence each. */
  readonly notes: readonly string[];
  /** Files and folders of the base that are not copied: its model card, and folders that are not the model's. */
  readonly notCopied: readonly string[];
}

export type WritingContext = Pick<JobContext<Progress>, 'throwIfStopped' | 'emit'>;

type FloatType = 'float32' | 'bfloat16' | 'float16';

/** Where a model comes from and how it is written. */
interface Writing {
  /** Where the tokenizer is, where the model's vocabulary is not that of its files. Default: with the model. */
  readonly tokenizerPath?: string;
  /** Path that the model was loaded from. */
  readonly path: string;
  readonly out: string;
  readonly dtype: FloatType;
  /** Absent: a directory of dense weights. */
  readonly choice: ExportChoice | undefined;
  /** How weights were rounded in training, by the paths of their modules. */
  readonly trained?: ReadonlyMap<string, Rounding> | undefined;
}

/** How the model that is written has to take its inputs to compute what was trained: as llama.cpp does, where training rounded them. */
export const activationOf = ({ choice, trained }: Pick<Writing, 'choice' | 'trained'>): Activation =>
  choice &&
  isBlockFormat(choice.to as FormatName) &&
  [...(trained?.values() ?? [])].some(({ activation }) => activation === 'q8')
    ? 'q8'
    : 'exact';

/**
 * Checks that a model can be written as asked, before anything is computed, and returns the function that writes it.
 * @throws GraftError 'usage' for models that GGUF cannot hold, 'mismatch' for groups that do not divide a layer
 */
export function prepareWriting(model: Model, writing: Writing): (context: WritingContext) => WrittenModel {
  const { path, out, dtype, choice, tokenizerPath = path } = writing;
  const isGguf = choice !== undefined && isGgufFormat(choice.to);
  if (isGguf) requireGguf(model);
  const chosen = choice && formatsFor(model, choice, writing.trained);
  const formatOf = chosen?.formatOf;
  const notes = [...(chosen?.notes ?? [])];
  const roundings = [...(writing.trained?.values() ?? [])];
  const summed = new Set(roundings.filter(({ ofBase }) => !ofBase).map(({ quantization }) => quantization.format));
  if (!choice && summed.size > 0)
    notes.push(`the adapter was trained for weights in ${[...summed].join(' and ')}, and these are not rounded`);
  if (activationOf(writing) === 'q8')
    notes.push('it was trained with inputs rounded as llama.cpp does: other commands compute so with --activation q8');
  if (roundings.some(({ activation }) => activation === 'int8'))
    notes.push(
      'it was trained with inputs rounded to 8 bits for each token: what is written has weights only, and other commands take inputs as they are',
    );
  const writesTokenizer = isGguf && statSync(tokenizerPath).isDirectory();
  const tokenizer = writesTokenizer ? tokenizerIfAny(tokenizerPath)?.gguf(model.vocabSize) : undefined;
  if (writesTokenizer && !tokenizer) notes.push('the base has no tokenizer, so the file has none');
  return (context) => {
    const progress = (done: number, total: number) => {
      context.throwIfStopped();
      context.emit({ type: 'progress', done, total });
    };
    let notCopied: readonly string[] = [];
    if (isGguf) {
      const differences = saveGguf(model, out, {
        source: path,
        formatOf: formatOf!,
        tokenizer: tokenizer?.fields,
        progress,
      });
      notes.push(...differences, ...(tokenizer?.notes ?? []));
    } else {
      notCopied = saveModel(
        model,
        out,
        path,
        dtype,
        tokenizerPath === path ? tokenizerFilesOf(path) : filesBeside(tokenizerPath),
        {
          ...(formatOf && { formatOf }),
          progress,
        },
      );
    }
    const bytes = statSync(isGguf ? out : join(out, 'model.safetensors')).size;
    return { out, bytes, sourceBytes: storedBytes(path), notes, notCopied };
  };
}

/** Returns the files of a tokenizer that stand in a directory, by name. */
const filesBeside = (dir: string): Record<string, string> =>
  Object.fromEntries(
    readdirSync(dir)
      .filter((name) =>
        /^(tokenizer(_config)?|special_tokens_map|added_tokens|vocab)\.json$|^(merges|vocab)\.txt$|\.jinja$/.test(name),
      )
      .map((name) => [name, readFileSync(join(dir, name), 'utf8')]),
  );

/** Returns the bytes of a model's weights in its file. */
function storedBytes(path: string): number {
  const { source, stored } = openModel(path);
  using _ = source;
  return [...stored.values()].reduce((sum, { entry }) => sum + entry.bytes, 0);
}

import { GraftError } from '../base/index.ts';
import { readJson } from '../io/index.ts';
import { examples, onModel, printJson, printNotes, withModel } from './shared.ts';

/** @throws GraftError 'usage' for a file that does not hold lists of ids */
function readIds(file: string): number[][] {
  const value = readJson(file);
  const isRow = (row: unknown) => Array.isArray(row) && row.length > 0 && row.every(Number.isInteger);
  if (Array.isArray(value) && value.length > 0 && value.every(isRow)) return value as number[][];
  throw new GraftError('usage', 'the ids must be rows of whole numbers, [[int]], none of them empty', { place: file });
}

export const logits = () =>
  onModel('logits', 'Write the full logits of rows of token ids, for comparison with another implementation.')
    .requiredOption('--ids <file>', 'JSON file of token ids, [[int]]: one list a row')
    .requiredOption('--out <file>', 'safetensors file to write: logits.0 of float32 [T, V], logits.1, and so on')
    .addHelpText(
      'after',
      examples(
        'graft logits --model dir --ids ids.json --out out.safetensors',
        'graft logits --model base.gguf --adapter out/adapter --ids ids.json --out out.safetensors',
      ),
    )
    .action(async ({ ids: file, out, ...options }) => {
      const ids = readIds(file);
      const result = await withModel(options, (model, settings) => {
        printNotes(model.info.notes);
        return model.writeLogits(ids, { ...settings, out });
      });
      if (options.json) printJson(result);
      else console.log(`Wrote ${result.rows} rows to ${result.out}`);
    });

import { isDeepStrictEqual } from 'node:util';
import { InvalidArgumentError, Option } from 'commander';
import { toWire } from '../base/index.ts';
import { exactJson, formatNames, truncations } from '../data/index.ts';
import { requireNew, writeFile } from '../io/index.ts';
import { taskNames } from '../nn/index.ts';
import type { Classification, Prediction } from '../session/index.ts';
import { count, countOrNone, examples, onModel, printJson, printNotes, withModel } from './shared.ts';

/** A command that works on a loaded model and rows. */
export const onRows = (name: string, description: string, data: string) =>
  onModel(name, description)
    .requiredOption('--data <file>', data)
    .addOption(
      new Option('--task <name>', 'the task; default: that of the adapter or the checkpoint').choices(taskNames),
    )
    .addOption(
      new Option('--format <name>', 'format of the rows; default: detected from their fields').choices(formatNames),
    )
    .option(
      '--columns <name=column...>',
      'the column of the file for each column of the format, where it has another name: text=body label=category',
      columns,
    )
    .option(
      '--delimiter <character>',
      'what separates the fields of a .csv file; default: found from its first lines',
      character,
    )
    .option('--limit <n>', 'rows that are read at most, the first ones', count)
    .option(
      '--max-length <n>',
      'maximum tokens per row; longer rows are truncated, or read in several windows; default: as the adapter was trained, else 1024',
      count,
    )
    .addOption(
      new Option(
        '--truncate <where>',
        'where longer rows are cut; default: as the adapter was trained, else at the end',
      ).choices(truncations),
    )
    .option(
      '--stride <n>',
      'tokens that two windows of one context overlap by; default: as the adapter was trained, else 128',
      countOrNone,
    );

/** `text=body` as a column of the format and that of the file. */
function columns(text: string, before: Readonly<Record<string, string>> = {}): Record<string, string> {
  const [, name, column] = /^([^=]+)=(.+)$/s.exec(text) ?? [];
  if (name === undefined || column === undefined) throw new InvalidArgumentError('It must be like text=body.');
  return { ...before, [name]: column };
}

function character(text: string): string {
  if (text.length === 1) return text;
  throw new InvalidArgumentError('It must be one character.');
}

export const predict = () =>
  onRows(
    'predict',
    'Predict each row with the head of the model or the adapter: classes with their probabilities, tags, answers, vectors; with a language model the likeliest of some answers.',
    'rows in any format that train reads; labels are not needed',
  )
    .option('--labels <text...>', 'causal-lm: the answers to choose among; the likeliest is the prediction')
    .requiredOption(
      '--out <file>',
      'JSONL file to write: a line for each row with its own fields and the prediction; a field of both is given_NAME as it was in the row',
    )
    .addHelpText(
      'after',
      examples(
        'graft predict --adapter out/adapter --data mails.jsonl --out labels.jsonl',
        'graft predict --model base.gguf --data mails.jsonl --labels spam ham --out labels.jsonl',
        'graft predict --model minilm --task embedding --data sentences.jsonl --out vectors.jsonl',
      ),
    )
    .action(async ({ data, out, labels, ...options }) => {
      requireNew(out);
      const { task, predictions, report, notes } = await withModel(options, async (model, settings) => {
        const rows = { ...settings, ownFields: true };
        if (!labels) return model.predict(data, rows);
        const { classifications, notes } = await model.classify(data, { ...rows, labels });
        return { task: model.info.task, predictions: classifications, report: undefined, notes };
      });
      const names = new Set(predictions.flatMap((prediction) => Object.keys(toWire(prediction) as object)));
      writeFile(out, (write) => {
        for (const prediction of predictions) write(Buffer.from(`${lineOf(prediction, names)}\n`));
      });
      if (options.json) printJson({ task, rows: predictions.length, out, ...(report && { report }), notes });
      else {
        console.log(`Wrote ${predictions.length} predictions to ${out}`);
        printNotes(notes);
      }
    });

/**
 * A line of predictions: the row's own fields, and then what is predicted of it.
 * @param names of what is predicted of any row: a label of a row without a prediction must not look like one
 */
function lineOf({ fields = {}, ...prediction }: Prediction | Classification, names: ReadonlySet<string>): string {
  const predicted = toWire(prediction) as Record<string, unknown>;
  // A text is the one that was read, which may have the model's prompt before it.
  const own = Object.entries(fields).map(([name, value]) => {
    const isSame = name === 'text' || !names.has(name) || isDeepStrictEqual(value, predicted[name]);
    return [isSame ? name : `given_${name}`, value];
  });
  return JSON.stringify({ ...Object.fromEntries(own), ...predicted }, (_, value) => exactJson(value) ?? value);
}

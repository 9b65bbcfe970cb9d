import { Option } from 'commander';
import { toWire } from '../base/index.ts';
import { formatNames } from '../data/index.ts';
import { requireNew, writeFile } from '../io/index.ts';
import { taskNames } from '../nn/index.ts';
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
      '--max-length <n>',
      'maximum tokens per row; longer rows are truncated, or read in several windows',
      count,
      1024,
    )
    .option('--stride <n>', 'tokens that two windows of one context overlap by', countOrNone, 128);

export const predict = () =>
  onRows(
    'predict',
    'Predict each row with the head of the model or the adapter: classes with their probabilities, tags, answers, vectors.',
    'rows in any format that train reads; labels are not needed',
  )
    .requiredOption('--out <file>', 'JSONL file to write: one line for each row, with its id and text')
    .addHelpText(
      'after',
      examples(
        'graft predict --model base.gguf --adapter out/adapter --data mails.jsonl --out labels.jsonl',
        'graft predict --model minilm --task embedding --data sentences.jsonl --out vectors.jsonl',
      ),
    )
    .action(async ({ data, out, ...options }) => {
      requireNew(out);
      const { task, predictions, report, notes } = await withModel(options, async (model, settings) =>
        model.predict(data, settings),
      );
      writeFile(out, (write) => {
        for (const prediction of predictions) write(Buffer.from(`${JSON.stringify(toWire(prediction))}\n`));
      });
      if (options.json) printJson({ task, rows: predictions.length, out, report, notes });
      else {
        console.log(`Wrote ${predictions.length} predictions to ${out}`);
        printNotes(notes);
      }
    });

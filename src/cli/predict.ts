import { Option } from 'commander';
import { formatNames } from '../data/index.ts';
import { taskNames } from '../nn/index.ts';
import { Session } from '../session/index.ts';
import { count, countOrNone, examples, logLine, onModel } from './shared.ts';

/** Options of a command that reads rows for the head of a task. */
export const onRows = (name: string, description: string, data: string) =>
  onModel(name, description, 'none')
    .requiredOption('--data <file>', data)
    .addOption(
      new Option('--task <name>', 'what the model is for; default: what the adapter or the checkpoint says').choices(
        taskNames,
      ),
    )
    .addOption(
      new Option('--format <name>', 'format of the rows; default: found out of their fields').choices(formatNames),
    )
    .option('--max-length <n>', 'tokens of a row; what is longer is cut, or goes on in another window', count, 1024)
    .option('--stride <n>', 'tokens that two windows of one context share', countOrNone, 128);

export const predict = () =>
  onRows(
    'predict',
    'Write what a head says of each row: classes with their probabilities, tags, answers, vectors.',
    'rows in the format that train reads; labels are not needed',
  )
    .requiredOption('--out <file>', 'JSONL file to write, a line a row')
    .addHelpText(
      'after',
      examples(
        'graft predict --model base.gguf --adapter out/adapter --data mails.jsonl --out labels.jsonl',
        'graft predict --model minilm --task embedding --data sentences.jsonl --out vectors.jsonl',
      ),
    )
    .action(async (options) => {
      await using session = new Session();
      const result = await session.run('predict', options, logLine);
      console.log(options.json ? JSON.stringify(result) : `Wrote ${result.rows} predictions to ${result.out}`);
    });

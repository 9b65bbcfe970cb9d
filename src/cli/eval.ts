import { Session } from '../session/index.ts';
import { count, examples, logLine, onModel } from './shared.ts';

export const evaluate = () =>
  onModel(
    'eval',
    'Measure a model on rows: loss and perplexity, and accuracy where every row is answered with one of a few labels.',
    'none',
  )
    .requiredOption('--data <file>', 'rows to measure on, in any format that train reads')
    .option('--labels <text...>', 'the answers to choose among; the likeliest one counts as said')
    .option('--max-length <n>', 'tokens of a row; what is longer is cut', count, 1024)
    .addHelpText(
      'after',
      examples(
        'graft eval --model base.gguf --adapter out/adapter --data test.jsonl',
        'graft eval --model base.gguf --data test.jsonl --labels spam ham',
      ),
    )
    .action(async (options) => {
      await using session = new Session();
      const result = await session.run('evaluate', options, logLine);
      if (options.json) {
        console.log(JSON.stringify(result));
        return;
      }
      console.log(
        `loss ${result.loss.toFixed(4)} nats a token, perplexity ${result.perplexity.toFixed(3)}, over ${result.tokens} tokens of ${result.rows} rows`,
      );
      if (result.accuracy) {
        const { value, low, high, rows } = result.accuracy;
        const percent = (x: number) => `${(100 * x).toFixed(1)} %`;
        console.log(`accuracy ${percent(value)} (95 % interval ${percent(low)} to ${percent(high)}, ${rows} rows)`);
      }
    });

import type { Confusion } from '../tasks/index.ts';
import { onRows } from './predict.ts';
import { examples, printJson, printNotes, withModel } from './shared.ts';

const number = (x: number) => x.toFixed(4);

/** Lines of cells in columns, each aligned to the right. */
function columns(lines: readonly (readonly string[])[]): string {
  const widths = lines[0]!.map((_, c) => Math.max(...lines.map((line) => line[c]!.length)));
  return lines.map((line) => line.map((text, c) => text.padStart(widths[c]!)).join('  ')).join('\n');
}

/** A confusion matrix where it fits a terminal, else its most frequent mistakes; `--json` has all of it. */
function confusionText({ labels, counts }: Confusion): string {
  if (labels.length <= 12) {
    const lines = counts.map((row, c) => [labels[c]!, ...row.map(String)]);
    return `true (rows), predicted (columns):\n${columns([['', ...labels], ...lines])}`;
  }
  const mistakes = counts.flatMap((row, truth) =>
    row.flatMap((count, predicted) => (truth === predicted || count === 0 ? [] : [{ count, truth, predicted }])),
  );
  const worst = mistakes.sort((a, b) => b.count - a.count).slice(0, 10);
  return [
    'most frequent mistakes:',
    ...worst.map(({ count, truth, predicted }) => `  ${count} × ${labels[truth]} predicted as ${labels[predicted]}`),
  ].join('\n');
}

export const evaluate = () =>
  onRows(
    'eval',
    'Evaluate a model on rows: the loss and the metrics of its task, each with its 95 % confidence interval; for language models also perplexity, and accuracy where the answer is one of a few labels.',
    'rows to measure on, in any format that train reads',
  )
    .option('--labels <text...>', 'causal-lm: the answers to choose among; the likeliest is the prediction')
    .addHelpText(
      'after',
      examples(
        'graft eval --model base.gguf --adapter out/adapter --data test.jsonl',
        'graft eval --model base.gguf --data test.jsonl --labels spam ham',
      ),
    )
    .action(async ({ data, ...options }) => {
      const result = await withModel(options, async (model, settings) => model.evaluate(data, settings));
      if (options.json) return printJson(result);
      const { loss, perplexity, tokens, rows, metrics, confusion } = result;
      console.log(
        perplexity === null
          ? `loss ${number(loss)} over ${rows} rows`
          : `loss ${number(loss)} nats a token, perplexity ${perplexity.toFixed(3)}, over ${tokens} tokens of ${rows} rows`,
      );
      for (const { name, value, low, high, count, of, error } of metrics) {
        const share = perplexity !== null && !error;
        const shown = (x: number) => (share ? `${(100 * x).toFixed(1)} %` : number(x));
        console.log(
          `${name} ${shown(value)} (95 % confidence interval ${shown(low)} to ${shown(high)}, ${count} ${of})`,
        );
      }
      if (confusion) console.log(confusionText(confusion));
      printNotes(result.notes);
    });

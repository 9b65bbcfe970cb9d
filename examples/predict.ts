/** Trains a head on labelled texts, measures it with its interval, and asks it about new ones. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseRecipe, Session } from 'graft';

const [model, rows, questions, dir] = process.argv.slice(2);
if (!model || !rows || !questions || !dir) {
  console.error('usage: node tools/run.cjs examples/predict.ts MODEL LABELLED.jsonl TEXTS.jsonl RUN_DIR');
  process.exit(2);
}

await using session = new Session();
const recipe = parseRecipe({
  model,
  task: 'sequence-classification',
  method: { type: 'lora', r: 8, target_modules: 'all-linear' },
  data: { train: rows, held_out: 0.2 },
  train: { lr: 5e-3, epochs: 4 },
  run: { dir },
});
const { adapter, eval_metrics } = await session.run('train', { recipe });
for (const { name, value, low, high, count, of } of eval_metrics) {
  console.log(`${name} ${value.toFixed(3)} (95 % interval ${low.toFixed(3)} to ${high.toFixed(3)}, ${count} ${of})`);
}
const out = join(dir, 'predictions.jsonl');
await session.run('predict', { model, adapter, data: questions, out });
for (const line of readFileSync(out, 'utf8').trim().split('\n')) {
  const { label, probabilities } = JSON.parse(line) as { label: string; probabilities: Record<string, number> };
  console.log(`${label} (${(100 * probabilities[label]!).toFixed(1)} %)`);
}

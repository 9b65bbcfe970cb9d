/** Trains a classifier on labelled texts, measures it with its confidence interval, and predicts new texts. */
import { Session } from 'graft-llm';

const [id, rows, questions, dir] = process.argv.slice(2);
if (!id || !rows || !questions || !dir) {
  console.error('usage: node tools/run.cjs examples/predict.ts MODEL LABELLED.jsonl TEXTS.jsonl RUN_DIR');
  process.exit(2);
}

await using session = new Session();
const { adapter, evalMetrics } = await session.train({
  model: id,
  task: 'sequence-classification',
  method: { type: 'lora', r: 8, target_modules: 'all-linear' },
  data: { train: rows, held_out: 0.2 },
  train: { lr: 5e-3, epochs: 4 },
  run: { dir },
});
for (const { name, value, low, high, count, of } of evalMetrics) {
  console.log(
    `${name} ${value.toFixed(3)} (95 % confidence interval ${low.toFixed(3)} to ${high.toFixed(3)}, ${count} ${of})`,
  );
}
await using model = await session.load(id, { adapters: { labels: adapter } });
for await (const { text, label, probabilities } of model.predict(questions, { adapter: 'labels' })) {
  if (label !== undefined) console.log(`${label} (${(100 * probabilities![label]!).toFixed(1)} %): ${text}`);
}

/** Measures a model on rows, without and with an adapter: loss, perplexity, and with labels the accuracy. */
import { Session } from 'graft-llm';

const [id, adapter, data, ...labels] = process.argv.slice(2);
if (!id || !adapter || !data) {
  console.error('usage: node tools/run.cjs examples/eval.ts MODEL ADAPTER_DIR ROWS.jsonl [LABEL …]');
  process.exit(2);
}

await using session = new Session();
await using model = await session.load(id);
for (const [name, options] of [
  ['base', {}],
  ['with adapter', { adapter }],
] as const) {
  const result = await model.evaluate(data, { ...options, ...(labels.length > 0 && { labels }) });
  const { loss, perplexity, tokens, accuracy } = result;
  console.log(`${name}: loss ${loss.toFixed(4)}, perplexity ${perplexity?.toFixed(2)} over ${tokens} tokens`);
  if (accuracy) {
    const [value, low, high] = [accuracy.value, accuracy.low, accuracy.high].map((x) => (100 * x).toFixed(1));
    console.log(`  ${value} % correct (95 % confidence interval ${low} to ${high}, ${accuracy.count} rows)`);
  }
}

/** Measures a model on rows, without and with an adapter: loss, perplexity, and with labels the share of right answers. */
import { Session } from 'graft';

const [model, adapter, data, ...labels] = process.argv.slice(2);
if (!model || !adapter || !data) {
  console.error('usage: node tools/run.cjs examples/eval.ts MODEL ADAPTER_DIR ROWS.jsonl [LABEL …]');
  process.exit(2);
}

await using session = new Session();
const common = { model, data, ...(labels.length > 0 && { labels }) };
// The second call finds the model loaded, and only puts the adapter on it.
for (const [name, more] of [
  ['base', {}],
  ['with adapter', { adapter }],
] as const) {
  const { loss, perplexity, tokens, accuracy } = await session.run('evaluate', { ...common, ...more });
  console.log(`${name}: loss ${loss.toFixed(4)}, perplexity ${perplexity?.toFixed(2)} over ${tokens} tokens`);
  if (accuracy) {
    const [value, low, high] = [accuracy.value, accuracy.low, accuracy.high].map((x) => (100 * x).toFixed(1));
    console.log(`  ${value} % right (95 % interval ${low} to ${high}, ${accuracy.rows} rows)`);
  }
}

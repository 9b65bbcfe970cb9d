/**
 * Several adapters on one base: the base is in memory once, and a switch costs nothing. Shows how likely each of two answers
 * is under each adapter.
 */
import { Session } from 'graft-llm';

const [id, ...adapters] = process.argv.slice(2);
if (!id || adapters.length === 0) {
  console.error('usage: node tools/run.cjs examples/adapters.ts MODEL ADAPTER_DIR …');
  process.exit(2);
}

await using session = new Session();
await using model = await session.load(id, { adapters });
const rows = [{ prompt: 'Is the sea salty? Answer:', completion: ' yes' }];
for (const adapter of [undefined, ...adapters, undefined]) {
  const start = performance.now();
  const { classifications } = await model.classify(rows, { adapter, labels: [' yes', ' no'] });
  const shown = Object.entries(classifications[0]!.probabilities).map(
    ([label, p]) => `${label.trim()} ${p.toFixed(5)}`,
  );
  console.log(`${adapter ?? 'base'}: ${shown.join(', ')} (${(performance.now() - start).toFixed(0)} ms)`);
}

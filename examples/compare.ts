/** Which method is best for some rows: each learns from them under the same budget, in a process of its own. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { comparisonPage, readComparison, Session } from 'graft-llm';

const [file] = process.argv.slice(2);
if (!file) {
  console.error('usage: node tools/run.cjs examples/compare.ts COMPARISON.yaml');
  process.exit(2);
}

const comparison = readComparison(file);
await using session = new Session();
const comparing = session.compare(comparison);
for await (const line of comparing) console.error(line);
const results = await comparing;
for (const { name, metric, trainable } of results.outcomes) {
  console.log(`${name}: ${metric.name} ${metric.value.toFixed(3)}, ${trainable} parameters trained`);
}
const picture = join(comparison.dir, 'comparison.html');
writeFileSync(picture, comparisonPage(results));
console.log(picture);

/** Which method is best for some rows: each learns from them under the same budget, in a process of its own. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { comparisonPage, readComparison, runComparison } from 'graft';

const [file] = process.argv.slice(2);
if (!file) {
  console.error('usage: node tools/run.cjs examples/compare.ts COMPARISON.yaml');
  process.exit(2);
}

const comparison = readComparison(file);
const results = await runComparison(comparison, console.error);
for (const { name, metric, trainable } of results.outcomes) {
  console.log(`${name}: ${metric.name} ${metric.value.toFixed(3)}, ${trainable} parameters trained`);
}
const picture = join(comparison.dir, 'comparison.html');
writeFileSync(picture, comparisonPage(results));
console.log(picture);

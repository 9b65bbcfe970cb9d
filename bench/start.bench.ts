/**
 * Time from the import of the library to the result of the first operator in a new process, and the time of one operator.
 *   npm run proof:start -- [--rounds 9]
 */
import { spawnSync } from 'node:child_process';
import { parseArgs } from 'node:util';
import { packageRoot } from '../src/base/index.ts';
import { median, report, spread } from './support.ts';

const { values: args } = parseArgs({ options: { rounds: { type: 'string', default: '9' } } });

const program = `
const start = performance.now();
const { startEngine, ops, scope } = await import('graft-llm/engine');
await startEngine();
using _ = scope();
const one = ops.ones([1]);
if (ops.add(one, one).item() !== 2) throw new Error('1 + 1 is not 2');
const first = (performance.now() - start) / 1e3;
const each = (body) => {
  for (let i = 0; i < 20_000; i++) body();
  const at = performance.now();
  for (let i = 0; i < 100_000; i++) body();
  return (performance.now() - at) / 100;
};
console.log(JSON.stringify({ first, neg: each(() => ops.neg(one).dispose()), add: each(() => ops.add(one, one).dispose()) }));
`;

const runs = Array.from({ length: Number(args.rounds) + 1 }, () => {
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
    cwd: packageRoot,
    encoding: 'utf8',
  });
  if (!stdout) throw new Error(stderr);
  return JSON.parse(stdout) as { first: number; neg: number; add: number };
}).slice(1); // the first fills the file cache

report(
  'start',
  [
    { what: 'import to first operator, s', got: median(runs.map((r) => r.first)), bar: 0.6, better: 'less' },
    { what: 'negating one element, µs', got: median(runs.map((r) => r.neg)), bar: 5, better: 'less' },
    { what: 'adding one element to another, µs', got: median(runs.map((r) => r.add)), bar: 5, better: 'less' },
  ],
  { rounds: runs.length, first_s: spread(runs.map((r) => r.first)), add_us: spread(runs.map((r) => r.add)) },
);

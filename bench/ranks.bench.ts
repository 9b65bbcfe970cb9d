/**
 * Every stage of ZeRO with six ways of training in 1, 2 and 4 processes against the run of one: 20 losses and the weights that are written.
 *   npm run proof:ranks -- [--only NAME]
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { startEngine } from '../src/engine/index.ts';
import { alone, differenceOf, launched, methods, recipe } from '../test/samples/ranks-runs.ts';
import { report, workFolder } from './support.ts';

const { values: args } = parseArgs({ options: { only: { type: 'string' } } });
await startEngine();
const names = ['lora', 'full', 'prefix', 'bottleneck', 'layers in turn', 'qat and lora'];
const chosen = methods.filter(([name]) => names.includes(name) && (!args.only || name === args.only));
const [stages, sizes] = [
  [0, 1, 2, 3],
  [1, 2, 4],
];
const folder = workFolder();
const cases: { method: string; ranks: number; stage: number; losses: number; weights: number; numbers: number }[] = [];
for (const [method, more, train] of chosen) {
  const single = await alone(recipe(join(folder, method, 'one'), more, train));
  assert.equal(single.losses.length, 20);
  for (const ranks of sizes)
    for (const stage of stages) {
      const input = recipe(join(folder, method, `${ranks}-${stage}`), more, { ...train, zero: { stage } });
      const several = await launched({ recipe: input, ranks });
      cases.push({ method, ranks, stage, ...differenceOf(several, single) });
      console.log(JSON.stringify(cases.at(-1)));
    }
}
const most = (field: 'losses' | 'weights') => Math.max(...cases.map((each) => each[field]));
report(
  'ranks',
  [
    { what: 'cases compared', got: cases.length, bar: chosen.length * sizes.length * stages.length, better: 'more' },
    { what: 'relative difference of 20 losses', got: most('losses'), bar: 1e-5, better: 'less' },
    { what: 'relative difference of the weights written', got: most('weights'), bar: 1e-5, better: 'less' },
    {
      what: 'numbers compared in a case, at least',
      got: Math.min(...cases.map(({ numbers }) => numbers)),
      bar: 100,
      better: 'more',
    },
  ],
  { cases },
);

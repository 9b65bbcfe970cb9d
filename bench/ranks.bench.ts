/**
 * Every stage of ZeRO with six ways of training in 1, 2 and 4 processes against the run of one: 20 losses and the weights that are written.
 * Beside them one process that adds up the gradients of a step row by row: how far another order of sums alone takes a run.
 * And what 2, 4 and 8 processes keep of SmolLM2-135M, which they train at stage 3, against 12Ψ/N bytes of weights and moments and 4Ψ/N of
 * gradients.
 *   npm run proof:ranks -- [--only NAME | --only memory]
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { startEngine } from '../src/engine/index.ts';
import { runRanks } from '../test/samples/ranks.ts';
import { alone, close, differenceOf, launched, methods, recipe } from '../test/samples/ranks-runs.ts';
import { fetchSmolLM2 } from '../tools/fetch/fetch.ts';
import { type Bar, report, round, workFolder } from './support.ts';

const { values: args } = parseArgs({ options: { only: { type: 'string' } } });
await startEngine();
const names = ['lora', 'full', 'prefix', 'bottleneck', 'layers in turn', 'qat and lora'];
const chosen = methods.filter(([name]) => names.includes(name) && (!args.only || name === args.only));
const [stages, sizes] = [
  [0, 1, 2, 3],
  [1, 2, 4],
];
const folder = workFolder();
const orders: { method: string; losses: number; weights: number }[] = [];
const cases: { method: string; ranks: number; stage: number; losses: number; weights: number; numbers: number }[] = [];
for (const [method, more, train] of chosen) {
  const single = await alone(recipe(join(folder, method, 'one'), more, train));
  assert.equal(single.losses.length, 20);
  const rowByRow = await alone(recipe(join(folder, method, 'row-by-row'), more, { ...train, micro_tokens: 1 }));
  const { losses, weights } = differenceOf(rowByRow, single);
  orders.push({ method, losses, weights });
  console.log(JSON.stringify({ ...orders.at(-1), of: 'one process, row by row' }));
  for (const ranks of sizes)
    for (const stage of stages) {
      const input = recipe(join(folder, method, `${ranks}-${stage}`), more, { ...train, zero: { stage } });
      const several = await launched({ recipe: input, ranks });
      cases.push({ method, ranks, stage, ...differenceOf(several, single) });
      console.log(JSON.stringify(cases.at(-1)));
    }
}
await close();
const kept: { ranks: number; rank: number; kept_mb: number; formula_mb: number; off: number; gradients_off: number }[] =
  [];
const sharingSizes = !args.only || args.only === 'memory' ? [2, 4, 8] : [];
for (const ranks of sharingSizes) {
  const settings = { MODEL: fetchSmolLM2(), FIELDS: JSON.stringify({ method: { type: 'full' } }) };
  const env = Object.fromEntries(Array.from({ length: ranks }, (_, rank) => [rank, settings]));
  for (const [rank, { value, error }] of (
    await runRanks('sharedOut', 0, { size: ranks, timeout: 300, env })
  ).entries()) {
    assert.equal(error, undefined);
    const { kept: bytes, trained, owned } = value as Record<string, number>;
    const formula = (12 * trained!) / ranks;
    const [off, gradientsOff] = [bytes! / formula - 1, owned! / (trained! / ranks) - 1];
    const row = { ranks, rank, kept_mb: round(bytes! / 2 ** 20), formula_mb: round(formula / 2 ** 20) };
    kept.push({ ...row, off: Math.abs(off), gradients_off: Math.abs(gradientsOff) });
    console.log(JSON.stringify(kept.at(-1)));
  }
}
const most = (field: 'losses' | 'weights') => Math.max(...cases.map((each) => each[field]));
const ofMemory: readonly Bar[] = [
  { what: 'processes whose memory was compared', got: kept.length, bar: 14, better: 'more' },
  {
    what: 'weights and moments at stage 3: off 12Ψ/N bytes by',
    got: Math.max(...kept.map(({ off }) => off)),
    bar: 0.05,
    better: 'less',
  },
  {
    what: 'gradients at stage 3: off 4Ψ/N bytes by',
    got: Math.max(...kept.map(({ gradients_off: off }) => off)),
    bar: 0.05,
    better: 'less',
  },
];
const ofResults: readonly Bar[] = [
  { what: 'cases compared', got: cases.length, bar: chosen.length * sizes.length * stages.length, better: 'more' },
  { what: 'relative difference of 20 losses', got: most('losses'), bar: 1e-5, better: 'less' },
  { what: 'relative difference of the weights written', got: most('weights'), bar: 1e-5, better: 'less' },
  {
    what: 'numbers compared in a case, at least',
    got: Math.min(...cases.map(({ numbers }) => numbers)),
    bar: 100,
    better: 'more',
  },
];
report('ranks', [...(chosen.length > 0 ? ofResults : []), ...(sharingSizes.length > 0 ? ofMemory : [])], {
  cases,
  orders,
  kept,
});

/** Says what each of many processes would hold and send, at every stage of ZeRO. */
import { Session } from 'graft-llm';

const [shape, ranks = '64'] = process.argv.slice(2);
if (!shape) {
  console.error('usage: node tools/run.cjs examples/plan.ts SHAPE [PROCESSES]');
  process.exit(2);
}

await using session = new Session();
const plan = await session.plan(
  {
    model: shape,
    quantize: 'nf4',
    method: { type: 'lora', r: 16, lora_alpha: 32, target_modules: 'all-linear' },
    data: { train: 'rows.jsonl' }, // is not read
    train: { batch_size: Number(ranks) },
    run: { dir: 'out' },
  },
  { shape, ranks: Number(ranks), memory: 80e9 },
);
for (const { stage, totalBytes, trafficBytes, fits, available } of plan.stages) {
  const notes = [...(fits ? [] : ['does not fit']), ...(available ? [] : ['not available yet'])];
  const sizes = `${(totalBytes / 1e9).toFixed(1)} GB of memory, ${(trafficBytes / 1e9).toFixed(1)} GB sent in a step`;
  console.log(`stage ${stage}: ${[sizes, ...notes].join('; ')}`);
}
console.log(`the cheapest that fits: ${plan.cheapest ?? 'none'}`);

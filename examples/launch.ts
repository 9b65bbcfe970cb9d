/** Fine-tunes a model with several processes, each of which takes a share of every step. */
import { launch } from 'graft-llm';

const [model, rows, dir, ranks = '2'] = process.argv.slice(2);
if (!model || !rows || !dir) {
  console.error('usage: node tools/run.cjs examples/launch.ts MODEL ROWS.jsonl OUT_DIR [PROCESSES]');
  process.exit(2);
}

const training = launch({
  ranks: Number(ranks),
  maxRestarts: 1, // a process that is killed costs what was done since the last checkpoint
  recipe: {
    model,
    method: { type: 'lora', r: 8, lora_alpha: 16, target_modules: 'all-linear' },
    data: { train: rows },
    train: { lr: 1e-3, batch_size: 4, zero: { stage: 1 } },
    run: { dir },
  },
});
for await (const event of training) {
  if (event.type === 'step') console.log(`step ${event.step}: loss ${event.loss.toFixed(4)}`);
}
const { adapter, ranks: processes } = await training;
for (const { rank, peakRssMb, sentMb, waitS } of processes ?? [])
  console.log(`rank ${rank}: ${peakRssMb.toFixed(0)} MB, ${sentMb.toFixed(2)} MB sent, ${waitS.toFixed(1)} s waited`);
console.log(`saved ${adapter}`);

/** Fine-tunes a model with LoRA on the rows of a file, and shows the loss as it falls. */
import { Session } from 'graft-llm';

const [model, rows, dir, epochs = '1'] = process.argv.slice(2);
if (!model || !rows || !dir) {
  console.error('usage: node tools/run.cjs examples/train.ts MODEL ROWS.jsonl OUT_DIR [EPOCHS]');
  process.exit(2);
}

await using session = new Session(); // an engine in a thread of its own; it ends with this scope
// The fields are those of a recipe file (docs/recipe.md); mistakes are reported all at once.
const training = session.train({
  model,
  method: { type: 'lora', r: 8, lora_alpha: 16, target_modules: 'all-linear' },
  data: { train: rows, held_out: 0.1 },
  train: { lr: 1e-3, schedule: 'cosine', epochs: Number(epochs), batch_size: 4, max_grad_norm: 1 },
  run: { dir },
});
for await (const event of training) {
  if (event.type === 'step') console.log(`step ${event.step}: loss ${event.loss.toFixed(4)}`);
  if (event.type === 'eval') console.log(`held out: loss ${event.loss.toFixed(4)}`);
}
const { tokensPerSecond, adapter } = await training;
console.log(`${tokensPerSecond.toFixed(0)} tokens/s, saved ${adapter}`);

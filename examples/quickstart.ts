/**
 * Teaches SmolLM2-135M-Instruct to tell spam from ham on real e-mails, and shows that it learned.
 *   npm run quickstart
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseRecipe, Session, type TrainEvent } from 'graft';
import { chooseMails, mailQuestion, mailRow } from '../tools/fetch/emails.ts';
import { fetchMails, fetchSmolLM2 } from '../tools/fetch/fetch.ts';

const dir = 'runs/quickstart';
const labels = ['spam', 'ham'] as const;
const perLabel = { train: 150, heldOut: 100 };

const seconds = (since: number) => `${Math.round((performance.now() - since) / 1000)} s`;
const percent = (x: number) => `${(100 * x).toFixed(1)} %`;

const model = fetchSmolLM2();
const { train, heldOut } = chooseMails(fetchMails(), perLabel);
mkdirSync(dir, { recursive: true });
writeFileSync(join(dir, 'train.jsonl'), train.map(mailRow).join('\n'));
writeFileSync(join(dir, 'heldout.jsonl'), heldOut.map(mailRow).join('\n'));

await using session = new Session();
const say = (event: { type: string }) => event.type === 'log' && console.error((event as { line?: string }).line);
const measure = (adapter?: string) =>
  session.run('choose', { model, data: join(dir, 'heldout.jsonl'), labels, ...(adapter && { adapter }) }, say);

const started = performance.now();
console.log(`1. Asking the model as it is about ${heldOut.length} e-mails it will never learn from …`);
const before = await measure();
console.log(`   ${percent(before.value)} right (95 % interval ${percent(before.low)} to ${percent(before.high)})`);

console.log(`2. Learning from ${train.length} others (LoRA of rank 8 on every linear layer) …`);
const recipe = parseRecipe({
  model,
  method: { type: 'lora', r: 8, lora_alpha: 16, target_modules: 'all-linear' },
  data: { train: join(dir, 'train.jsonl') },
  train: { lr: 1e-3, schedule: 'cosine', warmup_steps: 4, batch_size: 8, epochs: 1, max_grad_norm: 1 },
  run: { dir },
});
const result = await session.run('train', { recipe, fresh: true }, (event) => {
  if (event.type !== 'step') return say(event);
  const { step, loss, tokens, seconds: took } = event as Extract<TrainEvent, { type: 'step' }>;
  if (step % 5 === 0) console.log(`   step ${step}: loss ${loss.toFixed(3)}, ${(tokens / took).toFixed(0)} tokens/s`);
});
console.log(
  `   done: ${result.losses.length} steps, ${result.tokens_per_s.toFixed(0)} tokens/s, at most ${result.peak_rss_mb.toFixed(0)} MB; saved ${result.adapter}`,
);

console.log('3. Asking again …');
const after = await measure(result.adapter);
console.log(`   ${percent(after.value)} right (95 % interval ${percent(after.low)} to ${percent(after.high)})`);

console.log('4. Two mails that nobody has labelled:');
const unseen = [
  {
    subject: 'Re: Meeting on Thursday',
    body: 'Hi Anna, the room is booked until four. Could you bring the printed slides? The patch for the build is in my branch. Thanks, Tom',
  },
  {
    subject: 'You have been SELECTED!!!',
    body: 'Congratulations! Claim your free prize now, no purchase needed. Click here to get cheap meds and earn $5000 a week from home. Act now, limited offer!',
  },
];
for (const mail of unseen) {
  const [system, user] = mailQuestion(mail);
  const answer = await session.run('generate', {
    model,
    adapter: result.adapter,
    chat: true,
    system: system!.content,
    prompt: user!.content,
    maxNewTokens: 4,
  });
  console.log(`   "${mail.subject}" → ${answer.text.trim()}`);
}

console.log(`
All of it took ${seconds(started)} after the downloads. What to try next:
  npx graft generate --model ${model} --adapter ${result.adapter} --chat --system "Is this e-mail spam or ham?" --prompt "…"
  npx graft eval --model ${model} --adapter ${result.adapter} --data ${dir}/heldout.jsonl --labels spam ham
  Your own task: write rows like those of ${dir}/train.jsonl, and a recipe as in the README.`);

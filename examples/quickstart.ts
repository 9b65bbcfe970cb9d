/**
 * Teaches SmolLM2-135M-Instruct to tell spam from ham on real e-mails, and shows that it learned.
 *   npm run quickstart
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { engineStatus, Session } from 'graft-llm';
import { mailQuestion } from '../tools/fetch/emails.ts';
import { Progress } from '../tools/progress.ts';

const dir = 'runs/quickstart';
const labels = ['spam', 'ham'];
/** E-mails to train on and to measure on, how many characters of each are read, and about how many tokens that makes. */
const [trainCount, heldOutCount, characters, tokensPerMail] = [300, 80, 60, 60];

const percent = (x: number) => `${(100 * x).toFixed(1)} %`;
const about = (seconds: number) => `about ${Math.max(1, Math.round(seconds))} s`;

using progress = new Progress(6);
const started = performance.now();

// LibTorch is 543 MB, and the native addon is compiled; the cache keeps both.
const { torch, addon } = engineStatus();
const engineSeconds = addon && existsSync(addon) ? 2 : torch ? 90 : 150;

progress.begin(
  'Downloading the model (93 MB) and the e-mails (14 MB)',
  20,
  `the engine (LibTorch and the native addon), ${about(engineSeconds)}`,
);
/** Runs a script of tools/fetch in its own process, so that this one can keep the progress line moving. */
async function fetch(script: string, ...args: string[]): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [join('tools', 'fetch', `${script}.ts`), ...args]);
    return stdout.trim();
  } catch (error) {
    progress.print((error as { stderr: string }).stderr);
    process.exit(1);
  }
}
const model = await fetch('model', 'smollm2', dir);
const counts = ['--train', String(trainCount), '--held-out', String(heldOutCount)];
await fetch('emails', dir, ...counts, '--characters', String(characters));
progress.end('Downloaded the model and the e-mails');

const afterDownloads = performance.now();
progress.begin('Starting the engine', engineSeconds, 'measuring the model before training, about 20 s');
await using session = new Session({ log: (line) => progress.describe(line) });
// The first job fetches LibTorch and builds the addon where they are missing. This one also measures the machine.
const { gemm } = await session.doctor();
progress.end(`The engine is ready: ${gemm.float32.toFixed(0)} GFLOP/s in float32`);

/** Seconds that a pass over so many e-mails takes: 0.21 GFLOP a token, at two thirds of the rate of a large matrix product. */
const passSeconds = (mails: number) => (mails * tokensPerMail * 0.21) / (0.65 * gemm.float32);
const [measureSeconds, trainSeconds] = [passSeconds(heldOutCount), 2.2 * passSeconds(trainCount)];

/** The accuracy on the held-out e-mails: how often the likelier of the two answers is the right one. */
async function measure(title: string, next: string, adapter?: string): Promise<string> {
  progress.begin(`${title}: loading`, measureSeconds + 3, next);
  await using loaded = await session.load(model);
  const measuring = loaded.classify(join(dir, 'heldout.jsonl'), { labels, adapter });
  for await (const { done, total } of measuring)
    progress.advance(done / total, `${title}: ${done} of ${total} e-mails`);
  const { value, low, high } = (await measuring).accuracy!;
  const accuracy = `${percent(value)} right (95 % confidence interval ${percent(low)} to ${percent(high)}; chance is 50 %)`;
  progress.end(`${title}: ${accuracy}`);
  return accuracy;
}

const before = await measure('Before training', `training, ${about(trainSeconds)}`);

const training = `Training on ${trainCount} other e-mails (LoRA, rank 8)`;
progress.begin(`${training}: loading`, trainSeconds + 3, `measuring again, ${about(measureSeconds)}`);
const batchSize = 4;
const steps = trainCount / batchSize;
const running = session.train(
  {
    model,
    method: { type: 'lora', r: 8, lora_alpha: 32, target_modules: 'all-linear' },
    data: { train: join(dir, 'train.jsonl') },
    train: { lr: 1e-3, schedule: 'cosine', warmup_steps: 4, batch_size: batchSize, epochs: 1, max_grad_norm: 1 },
    run: { dir },
  },
  { fresh: true },
);
for await (const event of running) {
  if (event.type !== 'step') continue;
  const { step, loss } = event;
  progress.advance(step / steps, `${training}: step ${step} of ${steps}, loss ${loss.toFixed(3)}`);
}
const result = await running;
progress.end(
  `${training}: ${result.tokensPerSecond.toFixed(0)} tokens/s, peak memory ${result.peakRssMb.toFixed(0)} MB; saved ${result.adapter}`,
);

const after = await measure('After training', 'two new e-mails, about 3 s', result.adapter);

progress.begin('Two e-mails without a label', 3, 'done');
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
const answers: string[] = [];
await using trained = await session.load(model, { adapters: [result.adapter] });
for (const mail of unseen) {
  const [system, user] = mailQuestion(mail, characters);
  const { text } = await trained.generate([system!, user!], { adapter: result.adapter, maxNewTokens: 4 });
  answers.push(`"${mail.subject}" → ${text.trim()}`);
}
progress.end(`Two e-mails without a label: ${answers.join(', ')}`);

const total = (since: number) => `${Math.round((performance.now() - since) / 1000)} s`;
progress.print(`
Before training: ${before}
After training:  ${after}
It took ${total(started)}, ${total(afterDownloads)} of them after the downloads. What to try next:
  npx graft generate --model ${model} --adapter ${result.adapter} --chat --system "Is this e-mail spam or ham?" --prompt "…"
  npx graft eval --model ${model} --adapter ${result.adapter} --data ${dir}/heldout.jsonl --labels spam ham
  Your own task: write rows like those of ${dir}/train.jsonl, and a recipe as in the README.`);

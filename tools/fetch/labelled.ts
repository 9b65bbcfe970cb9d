/**
 * Writes the e-mails as labelled texts for training (train.jsonl) and evaluation (heldout.jsonl), half spam, half ham.
 *   node tools/run.cjs tools/fetch/labelled.ts FOLDER [--train 1000] [--held-out 500]
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { chooseMails } from './emails.ts';
import { fetchMails } from './fetch.ts';

const characters = 400;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { train: { type: 'string', default: '1000' }, 'held-out': { type: 'string', default: '500' } },
});
const [folder] = positionals;
if (!folder) {
  console.error('usage: node tools/run.cjs tools/fetch/labelled.ts FOLDER [--train 1000] [--held-out 500]');
  process.exit(2);
}
const half = (text: string) => Math.round(Number(text) / 2);
const { train, heldOut } = chooseMails(fetchMails(), { train: half(values.train), heldOut: half(values['held-out']) });
mkdirSync(folder, { recursive: true });
for (const [name, mails] of [
  ['train', train],
  ['heldout', heldOut],
] as const) {
  const rows = mails.map(({ subject, body, label }) => ({ text: `${subject}\n${body}`.slice(0, characters), label }));
  writeFileSync(join(folder, `${name}.jsonl`), rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  console.log(`${join(folder, name)}.jsonl: ${rows.length} e-mails`);
}

/**
 * Writes the e-mails as chat rows for training (train.jsonl) and evaluation (heldout.jsonl), half spam and half ham.
 *   node tools/run.cjs tools/fetch/emails.ts FOLDER [--train 1000] [--held-out 500]
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { fetchMails, type Mail } from './fetch.ts';

const bodyCharacters = 230;

export const mailQuestion = ({ subject, body }: Pick<Mail, 'subject' | 'body'>) => [
  { role: 'system', content: 'Is this e-mail spam or ham?' },
  { role: 'user', content: `${subject.slice(0, 100)}\n${body.slice(0, bodyCharacters)}` },
];

export const mailRow = (mail: Mail) =>
  JSON.stringify({ messages: [...mailQuestion(mail), { role: 'assistant', content: mail.label }] });

/** Returns so many mails of each label, spread evenly over the corpus; the held-out mails are not in the training part. */
export function chooseMails(
  mails: readonly Mail[],
  perLabel: { train: number; heldOut: number },
): { train: Mail[]; heldOut: Mail[] } {
  const parts = { train: [] as Mail[], heldOut: [] as Mail[] };
  for (const label of ['spam', 'ham'] as const) {
    // Mailing lists repeat messages: the same text must not be in both parts.
    const all = [
      ...new Map(
        mails.filter((m) => m.label === label).map((m) => [m.subject + m.body.slice(0, bodyCharacters), m]),
      ).values(),
    ];
    const total = perLabel.train + perLabel.heldOut;
    const picked = Array.from({ length: total }, (_, i) => all[Math.floor((i * all.length) / total)]!);
    picked.forEach((mail, i) => {
      const heldOut = Math.floor((i * perLabel.heldOut) / total) !== Math.floor(((i + 1) * perLabel.heldOut) / total);
      (heldOut ? parts.heldOut : parts.train).push(mail);
    });
  }
  return parts;
}

if (import.meta.main) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { train: { type: 'string', default: '1000' }, 'held-out': { type: 'string', default: '500' } },
  });
  const [folder] = positionals;
  if (!folder) {
    console.error('usage: node tools/run.cjs tools/fetch/emails.ts FOLDER [--train 1000] [--held-out 500]');
    process.exit(2);
  }
  const half = (text: string) => Math.round(Number(text) / 2);
  const parts = chooseMails(fetchMails(), { train: half(values.train), heldOut: half(values['held-out']) });
  mkdirSync(folder, { recursive: true });
  for (const [name, rows] of [
    ['train', parts.train],
    ['heldout', parts.heldOut],
  ] as const) {
    writeFileSync(join(folder, `${name}.jsonl`), rows.map((mail) => `${mailRow(mail)}\n`).join(''));
    console.log(`${join(folder, name)}.jsonl: ${rows.length} e-mails`);
  }
}

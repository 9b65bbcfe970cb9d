/**
 * Writes e-mails as chat rows to train on (train.jsonl) and to measure on (heldout.jsonl), half spam and half ham.
 *   node tools/run.cjs tools/fetch/emails.ts FOLDER [--train 1000] [--held-out 500] [--characters 230] [--language]
 * Of each e-mail the row has the subject and this many characters of the text; with --language nothing else, to learn as language.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { fetchMails, type Mail } from './fetch.ts';

const bodyCharacters = 230;

/** Returns the question about an e-mail as chat messages. */
export const mailQuestion = ({ subject, body }: Pick<Mail, 'subject' | 'body'>, characters = bodyCharacters) => [
  { role: 'system', content: 'Is this e-mail spam or ham?' },
  { role: 'user', content: `${subject.slice(0, 100)}\n${body.slice(0, characters)}` },
];

/** Returns the question about an e-mail and its answer as a line of a .jsonl file. */
export const mailRow = (mail: Mail, characters = bodyCharacters) =>
  JSON.stringify({ messages: [...mailQuestion(mail, characters), { role: 'assistant', content: mail.label }] });

/** Returns an e-mail as a line of a .jsonl file: subject and text, to learn as language. */
export const mailText = ({ subject, body }: Mail, characters: number) =>
  JSON.stringify({ text: `${subject}\n${body.slice(0, characters)}` });

/** Returns the same number of e-mails of each label, spread over the whole corpus; no held-out e-mail is among those to train on. */
export function chooseMails(
  mails: readonly Mail[],
  perLabel: { train: number; heldOut: number },
): { train: Mail[]; heldOut: Mail[] } {
  const parts = { train: [] as Mail[], heldOut: [] as Mail[] };
  for (const label of ['spam', 'ham'] as const) {
    // Mailing lists repeat themselves: the same text must not be in both parts.
    const all = [
      ...new Map(
        mails.filter((m) => m.label === label).map((m) => [m.subject + m.body.slice(0, bodyCharacters), m]),
      ).values(),
    ];
    const wanted = perLabel.train + perLabel.heldOut;
    const picked = Array.from({ length: wanted }, (_, i) => all[Math.floor((i * all.length) / wanted)]!);
    picked.forEach((mail, i) => {
      const heldOut = Math.floor((i * perLabel.heldOut) / wanted) !== Math.floor(((i + 1) * perLabel.heldOut) / wanted);
      (heldOut ? parts.heldOut : parts.train).push(mail);
    });
  }
  return parts;
}

if (import.meta.main) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      train: { type: 'string', default: '1000' },
      'held-out': { type: 'string', default: '500' },
      characters: { type: 'string', default: String(bodyCharacters) },
      language: { type: 'boolean', default: false },
    },
  });
  const [folder] = positionals;
  if (!folder) {
    console.error(
      'usage: node tools/run.cjs tools/fetch/emails.ts FOLDER [--train 1000] [--held-out 500] [--characters 230] [--language]',
    );
    process.exit(2);
  }
  const half = (text: string) => Math.round(Number(text) / 2);
  const parts = chooseMails(fetchMails(), { train: half(values.train), heldOut: half(values['held-out']) });
  mkdirSync(folder, { recursive: true });
  for (const [name, rows] of [
    ['train', parts.train],
    ['heldout', parts.heldOut],
  ] as const) {
    const line = values.language ? mailText : mailRow;
    const lines = rows.map((mail) => `${line(mail, Number(values.characters))}\n`);
    writeFileSync(join(folder, `${name}.jsonl`), lines.join(''));
    console.log(`${join(folder, name)}.jsonl: ${rows.length} e-mails`);
  }
}

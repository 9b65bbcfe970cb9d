import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { Session } from '../../src/session/index.ts';

/** A folder and an engine thread for the tests of one file; both go when the last has run. */
export function placeFor(name: string) {
  const dir = mkdtempSync(join(tmpdir(), `graft-${name}-`));
  const session = new Session();
  after(async () => {
    await session[Symbol.asyncDispose]();
    rmSync(dir, { recursive: true });
  });
  const at = (...parts: string[]) => join(dir, ...parts);
  const write = (file: string, rows: readonly object[]): string => {
    writeFileSync(at(file), rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
    return at(file);
  };
  return { dir, session, at, write };
}

export const numbered = <T>(count: number, make: (i: number) => T) => Array.from({ length: count }, (_, i) => make(i));

const kinds = { ham: ['report', 'meeting', 'river', 'town'], spam: ['prize', 'winner', 'free', 'cash'] } as const;

/** Which kind number `i` of the mails is, and words that only its kind has. */
export const kindOf = (i: number): keyof typeof kinds => (i % 3 === 0 ? 'spam' : 'ham');
export const words = (kind: keyof typeof kinds, i: number): string =>
  numbered(3 + (i % 5), (w) => kinds[kind][(i * 7 + w * 3 + ((i * w) % 2)) % 4]).join(' ');

/** `count` labelled mails that a tiny model can tell apart. */
export const mails = (count: number) => numbered(count, (i) => ({ text: words(kindOf(i), i), label: kindOf(i) }));

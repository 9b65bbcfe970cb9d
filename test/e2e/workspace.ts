import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { type LoadedModel, Session } from '../../src/session/index.ts';

/** Returns a temporary directory and a session for the tests of one file; both are removed after the last test. */
export function workspaceFor(name: string) {
  const dir = mkdtempSync(join(tmpdir(), `graft-${name}-`));
  const session = new Session();
  after(async () => {
    await session[Symbol.asyncDispose]();
    rmSync(dir, { recursive: true });
  });
  /** Loads a model for `act` alone. */
  const withModel = async <T>(id: string, act: (model: LoadedModel) => PromiseLike<T>): Promise<T> => {
    await using model = await session.load(id);
    return await act(model);
  };
  const at = (...parts: string[]) => join(dir, ...parts);
  /** Writes rows as JSON lines and returns the path. */
  const write = (file: string, rows: readonly object[]): string => {
    writeFileSync(at(file), rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
    return at(file);
  };
  return { dir, session, withModel, at, write };
}

/** Returns `count` values, made from their indices. */
export const numbered = <T>(count: number, make: (i: number) => T) => Array.from({ length: count }, (_, i) => make(i));

/** Words that only the mails of one class have. */
const wordsOfClass = {
  ham: ['report', 'meeting', 'river', 'town'],
  spam: ['prize', 'winner', 'free', 'cash'],
} as const;

/** Returns the class of mail number `i`. */
export const kindOf = (i: number): keyof typeof wordsOfClass => (i % 3 === 0 ? 'spam' : 'ham');
/** Returns the text of mail number `i`: words that only its class has. */
export const words = (kind: keyof typeof wordsOfClass, i: number): string =>
  numbered(3 + (i % 5), (w) => wordsOfClass[kind][(i * 7 + w * 3 + ((i * w) % 2)) % 4]).join(' ');

/** Returns `count` labelled mails that a tiny model can classify. */
export const mails = (count: number) => numbered(count, (i) => ({ text: words(kindOf(i), i), label: kindOf(i) }));

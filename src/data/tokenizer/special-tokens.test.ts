import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { golden, temporary } from '../../../test/support.ts';
import { loadTokenizer } from '../index.ts';

interface Case {
  name: string;
  files: Readonly<Record<string, unknown>>;
  roles: Readonly<Record<string, number>>;
  ids: number[][];
  decoded: string[];
}

const { texts, tokenizers, cases } = JSON.parse(readFileSync(golden('tokenizer', 'special-tokens.json'), 'utf8')) as {
  texts: string[];
  tokenizers: Readonly<Record<string, unknown>>;
  cases: Case[];
};

/** Writes files, text or JSON; tokenizer.json by its name in the golden. */
function write(dir: string, files: Readonly<Record<string, unknown>>): string {
  for (const [name, content] of Object.entries(files)) {
    const value = name === 'tokenizer.json' ? (tokenizers[content as string] ?? content) : content;
    writeFileSync(join(dir, name), typeof value === 'string' ? value : JSON.stringify(value));
  }
  return dir;
}

test('special and added tokens are those that AutoTokenizer of transformers finds in the same files', () => {
  let compared = 0;
  for (const { name, files, roles, ids, decoded } of cases) {
    using dir = temporary();
    const t = loadTokenizer(write(dir.path, files));
    const found = { bos: t.bosId, eos: t.eosId, pad: t.padId, unk: t.unkId };
    // The model's own unknown token has the role too; Python gives it no name.
    const expected = { bos: roles.bos, eos: roles.eos, pad: roles.pad, unk: roles.unk ?? t.unkId };
    assert.deepEqual(found, expected, name);
    texts.forEach((text, i) => {
      assert.deepEqual([...t.encode(text)], ids[i], `${name}: ${text}`);
      assert.equal(t.decode(ids[i]!, { skipSpecialTokens: true }), decoded[i], `${name}: ${text}`);
      const stream = t.stream({ skipSpecialTokens: true });
      assert.equal(
        ids[i]!.map((id) => stream.push(id)).join('') + stream.end(),
        decoded[i],
        `${name}, streamed: ${text}`,
      );
      compared++;
    });
  }
  assert.ok(compared >= 400, `${compared} texts`);
});

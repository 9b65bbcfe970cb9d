/** The page on serving says of every field what becomes of it. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { packageRoot } from '../../src/base/index.ts';
import { chatSchema, neutralChatFields } from '../../src/serve/wire/chat.ts';
import { completionSchema, neutralCompletionFields } from '../../src/serve/wire/completions.ts';

test('docs/serving.md names every field of chat and completions', (t) => {
  const page = readFileSync(join(packageRoot, 'docs', 'serving.md'), 'utf8');
  const [, fields] = /## Fields\n(.*?)\n### /s.exec(page)!;
  const named = new Set([...fields!.matchAll(/`(\w+)`/g)].map(([, name]) => name));
  const chat = [...Object.keys(chatSchema.shape), ...Object.keys(neutralChatFields)];
  const plain = [...Object.keys(completionSchema.shape), ...Object.keys(neutralCompletionFields)];
  for (const name of [...chat, ...plain]) assert.ok(named.has(name), name);
  assert.ok(chat.length > 35 && plain.length > 20);
  t.diagnostic(`${new Set([...chat, ...plain]).size} fields found`);
});

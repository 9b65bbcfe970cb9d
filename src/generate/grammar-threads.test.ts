import assert from 'node:assert/strict';
import test from 'node:test';
import { golden } from '../../test/support.ts';
import { loadTokenizer } from '../data/index.ts';
import { Grammars, vocabularyTokens } from './grammar.ts';
import { GrammarThreads } from './grammar-threads.ts';
import { XGrammar } from './xgrammar.ts';

const tokenizer = loadTokenizer(golden('tokenizer', 'llama3.json'));
const eos = 596; // any id: the golden tokenizer names none
const vocabulary = { ...vocabularyTokens(tokenizer, 700), stopIds: [eos] };
const ebnfOf = (schema: object) => new XGrammar().fromJsonSchema(JSON.stringify(schema));
const idsOf = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });

test('threads allow what the grammar in this thread allows, for answers at the same time', async (t) => {
  const schemas = [{ type: 'integer' }, { type: 'array', items: { type: 'boolean' } }, { enum: ['red', 'green'] }];
  const texts = ['-120', '[true, false]', '"green"'];
  const here = new Grammars(() => vocabulary);
  const threads = new GrammarThreads(() => vocabulary);
  t.after(() => threads.close());
  let compared = 0;
  await Promise.all(
    [...schemas, ...schemas].map(async (schema, i) => {
      const ebnf = await ebnfOf(schema);
      using expected = await here.begin(ebnf);
      using got = await threads.begin(ebnf);
      for (const id of idsOf(texts[i % 3]!)) {
        assert.deepEqual([...got.allowed()], [...expected.allowed()]);
        assert.equal(got.ended, expected.ended);
        expected.accept(id);
        got.accept(id);
        compared++;
      }
      assert.equal(got.ended, expected.ended);
    }),
  );
  assert.ok(compared > 12, `${compared}`);
});

test('a token that is not allowed, a grammar that is none, and a close are told', async () => {
  const threads = new GrammarThreads(() => vocabulary);
  const ebnf = await ebnfOf({ type: 'integer' });
  const filter = await threads.begin(ebnf);
  filter.accept(idsOf('x')[0]!);
  assert.throws(() => filter.allowed(), { kind: 'engine', message: /does not allow/ });
  filter[Symbol.dispose]();
  await assert.rejects(threads.begin('root ::= ('), { kind: 'usage', message: /grammar cannot be used/ });
  using after = await threads.begin(ebnf);
  assert.ok(!after.ended, 'the next one is made');
  const waiting = threads.begin(await ebnfOf({ type: 'boolean' }));
  const told = assert.rejects(waiting, { kind: 'engine', message: /has ended/ });
  await threads.close();
  await told;
  after.accept(idsOf('1')[0]!);
  assert.throws(() => after.allowed(), { kind: 'engine', message: /has ended/ });
});

test('more grammars at a time than threads: the last ones wait for answers to end, and none waits for ever', async (t) => {
  const threads = new GrammarThreads(() => vocabulary);
  t.after(() => threads.close());
  const grammars = await Promise.all(
    Array.from({ length: 6 }, (_, i) => ebnfOf({ type: 'string', enum: [`value ${i}`] })),
  );
  const open: Disposable[] = [];
  const begun: number[] = [];
  // The first grammar is in use all the time, by answers that overlap.
  const all = [...grammars, grammars[0]!, grammars[0]!].map(async (ebnf, i) => {
    const filter = await threads.begin(ebnf);
    begun.push(i);
    open.push(filter);
  });
  while (begun.length < all.length) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    open.shift()?.[Symbol.dispose]();
  }
  await Promise.all(all);
  for (const filter of open) filter[Symbol.dispose]();
  assert.equal(new Set(begun).size, 8);
});

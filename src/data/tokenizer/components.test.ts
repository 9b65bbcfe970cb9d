import assert from 'node:assert/strict';
import test from 'node:test';
import { GraftError } from '../../base/index.ts';
import { Tokenizer } from '../index.ts';
import { type SplitBehavior, splitText, toRegExp } from './component.ts';
import { makeNormalizer } from './normalizer.ts';
import { makePreTokenizer } from './pretokenizer.ts';

// All expected values in this file are the output of Python's tokenizers 0.23.3.

test('splitting at a pattern: every behaviour, plain and inverted', () => {
  const table: [text: string, behavior: SplitBehavior, plain: string, inverted: string][] = [
    ['-ab--cd-e', 'Removed', 'ab cd e', '- - - -'],
    ['-ab--cd-e', 'Isolated', '- ab - - cd - e', '- ab - - cd - e'],
    ['-ab--cd-e', 'MergedWithPrevious', '- ab- - cd- e', '-ab - -cd -e'],
    ['-ab--cd-e', 'MergedWithNext', '-ab - -cd -e', '- ab- - cd- e'],
    ['-ab--cd-e', 'Contiguous', '- ab -- cd - e', '- ab -- cd - e'],
    ['a--', 'Removed', 'a', '- -'],
    ['a--', 'Isolated', 'a - -', 'a - -'],
    ['a--', 'MergedWithPrevious', 'a- -', 'a - -'],
    ['a--', 'MergedWithNext', 'a - -', 'a- -'],
    ['a--', 'Contiguous', 'a --', 'a --'],
  ];
  for (const [text, behavior, plain, inverted] of table) {
    assert.deepEqual(splitText(text, /-/gu, behavior).join(' '), plain, `${text} ${behavior}`);
    assert.deepEqual(splitText(text, /-/gu, behavior, true).join(' '), inverted, `${text} ${behavior} inverted`);
  }
  assert.deepEqual(splitText('1234567', toRegExp({ Regex: '(?=(\\d{3})+(?!\\d))' }, ''), 'Isolated'), [
    '1',
    '234',
    '567',
  ]);
});

/** One id a character, and the added tokens of the test. */
function toy(added: Record<string, unknown>[], more: Record<string, unknown> = {}): Tokenizer {
  const vocab = Object.fromEntries([...'abc x_é?'].map((c, i) => [c, i]));
  const tokens = added.map((token, i) => ({ id: 8 + i, normalized: false, ...token }));
  return new Tokenizer(
    { model: { type: 'BPE', vocab, merges: [], unk_token: '?' }, added_tokens: tokens, ...more },
    {},
    'toy',
  );
}

test('added tokens: the longest, whole words, white space next to them', () => {
  const tokenizer = toy([
    { content: 'ab' },
    { content: 'abx' },
    { content: '<w>', single_word: true },
    { content: '<l>', lstrip: true },
    { content: '<r>', rstrip: true, special: true },
    { content: '<b>', lstrip: true, rstrip: true },
  ]);
  const table: [string, string[]][] = [
    ['abxab', ['abx', 'ab']],
    ['a<w>b <w> é<w> <w>', [...'a???b ', '<w>', ...' é??? ', '<w>']],
    ['a  <l>  b', ['a', '<l>', ' ', ' ', 'b']],
    ['a  <r>  b', ['a', ' ', ' ', '<r>', 'b']],
    [' <b> <b> ', ['<b>', '<b>']],
    ['<r> \u3000\n<l>x', ['<r>', '<l>', 'x']],
    ['<w>', ['<w>']],
    ['_<w>_ <w>.', [...'_???_ ', '<w>', '?']],
    ['xabab', ['x', 'ab', 'ab']],
  ];
  for (const [text, tokens] of table)
    assert.deepEqual(
      [...tokenizer.encode(text)].map((id) => tokenizer.idToToken(id)),
      tokens,
      text,
    );
  assert.ok(tokenizer.isSpecial(12) && !tokenizer.isSpecial(11));
  assert.equal(tokenizer.decode([0, 12, 1], { skipSpecialTokens: true }), 'a b');
});

test('a mask covers the tokens that overlap a span, with the white space that an added token includes', () => {
  const tokenizer = toy([{ content: '<l>', lstrip: true }]);
  const mask = (text: string, ...spans: [number, number][]) => [...tokenizer.encodeWithMask(text, spans).mask].join('');
  assert.equal(mask('abc', [1, 2]), '010');
  assert.equal(mask('a  <l>b', [1, 2]), '010');
  assert.equal(mask('a  <l>b', [0, 1], [6, 7]), '101');
  assert.equal(mask('abc', [1, 1]), '000');
  assert.equal(mask('abc'), '000');
  const merged = toy([], {
    model: { type: 'BPE', vocab: { a: 0, b: 1, ab: 2 }, merges: ['a b'] },
    normalizer: { type: 'Prepend', prepend: 'a' },
  });
  assert.deepEqual([...merged.encodeWithMask('bab', [[0, 1]]).mask], [1, 0]);
  assert.deepEqual([...merged.encodeWithMask('bab', [[2, 3]]).mask], [0, 1]);
});

test('character classes are those of the Rust library, without characters of newer Unicode versions', () => {
  const pieces = (type: string, text: string) => makePreTokenizer({ type, behavior: 'Isolated' }, '').run(text, true);
  assert.deepEqual(pieces('Punctuation', 'a؟b؝c—d`e'), ['a', '؟', 'b؝c', '—', 'd', '`', 'e']);
  assert.deepEqual(pieces('BertPreTokenizer', ' a\u3000b.c\u200bd '), ['a', 'b', '.', 'c\u200bd']);
  assert.deepEqual(pieces('Whitespace', 'naïve_1 x²—y'), ['naïve_1', 'x', '²—', 'y']);
  assert.deepEqual(pieces('Digits', 'a1½٣b'), ['a', '1½٣', 'b']);
  const normal = (type: string, text: string) => makeNormalizer({ type }, '')!(text);
  assert.equal(normal('NFKC', 'ﬁ㋿\u{1fbf0}①'), 'fi㋿\u{1fbf0}1');
  assert.equal(normal('Lowercase', 'ΑΣ ΣΑΣ İ'), 'ασ σασ i\u0307');
  assert.equal(normal('StripAccents', 'e\u0301\u0903'), 'e');
  assert.equal(normal('BertNormalizer', '\tÉ\u0000\u200d漢x\ufffd'), ' e 漢 x');
  assert.equal(normal('Strip', '\u3000 a b \u0085'), 'a b');
});

const charsmap =
  'AAQAAAAgAAAJDQAAAQAAgMwYAgCBCQAADR0AAAwAAICgFQAAgCgCAIsNAAAAAACAoB0AAAUAAICMDAIAgAUAAA8AAICBBQAACQAAgKEFAAAHAACA' +
  'n0ACAJE4AgCNxAMA8EACAJ80AgCRyAIAj/ACAL0dAAADAACAHAAAAB8AAAAeAAAArMQCACAAAAAjAAAAIgAAACUAAAAkAAAAJwAAACYAAAApAAAA' +
  'KAAAACsAAAAqAAAALQAAACwAAAAvAAAALgAAALwMAgAwAAAAMwAAADIAAAA1AAAANAAAADcAAAA2AAAAOQAAADgAAAA7AAAAOgAAAD0AAAA8AAAA' +
  'PwAAAD4AAABBAAAAQAAAAEMAAABCAAAARQAAAEQAAABHAAAARgAAAEkAAABIAAAASwAAAEoAAABNAAAATAAAAE8AAABOAAAAUQAAAFAAAABTAAAA' +
  'UgAAAFUAAABUAAAAVwAAAFYAAABZAAAAWAAAAFsAAABaAAAAXQAAAFwAAABfAAAAXgAAAGEAAABgAAAAYwAAAGIAAABlAAAAZAAAAGcAAABmAAAA' +
  'aQAAAGgAAABrAAAAagAAAG0AAABliAIAbwAAAG4AAABxAAAAcAAAAHMAAAByAAAAdQAAAHQAAAB3AAAAdgAAAHkAAAB4AAAAewAAAHoAAAB9AAAA' +
  'fAAAAH8AAAB+AAAAgQAAAIAAAACDAAAAggAAAIUAAACEAAAAhwAAAIYAAACJAAAAiAAAAIsAAACKAAAAjQAAAIwAAACPAAAAjgAAAJEAAACQAAAA' +
  'kwAAAJIAAACVAAAAlAAAAJcAAACWAAAAmQAAAJgAAACbAAAAmgAAAJ0AAACcAAAAnwAAAJ4AAAChAAAAoAAAAKMAAACiAAAApQAAAKQAAACnAAAA' +
  'pgAAAKkAAACoAAAAqwAAAKoAAACtAAAArAAAAK8AAACuAAAAsQAAALAAAACzAAAAsgAAALUAAAC0AAAAtwAAALYAAAC5AAAAuAAAALsAAAC6AAAA' +
  'vQAAALwAAAC/AAAAvgAAAMEAAADAAAAAwwAAAMIAAADFAAAAxAAAAMcAAADGAAAAyQAAAMgAAADCtAEAygAAAM0AAADMAAAAzwAAAM4AAADRAAAA' +
  '0AAAANMAAADSAAAA1QAAANQAAADXAAAA1gAAANkAAADYAAAA2wAAANoAAADdAAAA3AAAAN8AAADeAAAA4QAAAOAAAADjAAAA4gAAAOUAAADkAAAA' +
  '5wAAAO+sAQDpAAAA6AAAAOKIAQDjqAEA7QAAAOwAAADvAAAA7gAAAPEAAADwAAAA8wAAAPIAAAD1AAAA9AAAAPcAAAD2AAAA8MwBAPgAAAD7AAAA' +
  '+gAAAP0AAAD8AAAA/wAAAP4AAAAAIAArADEAQQBmaQDDqQDjgqLjg5Hjg7zjg4gA';

test("SentencePiece's compiled rules", () => {
  const normal = makeNormalizer({ type: 'Precompiled', precompiled_charsmap: charsmap }, '')!;
  const table: [string, string][] = [
    ['', ''],
    ['plain', 'plain'],
    ['\ufb01ne', 'fine'],
    ['\uff21\uff22', 'A\uff22'],
    ['\u2460\u2461', '1\u2461'],
    ['a\u00a0b\tc', 'a b c'],
    ['\r\n', ' '],
    ['x\ry', 'x y'],
    ['cafe\u0301!', 'caf\u00e9!'],
    ['cafe\u0301\u0302', 'caf\u00e9'],
    ['z\u200bz', 'zz'],
    ['\u3300\u3300', '\u30a2\u30d1\u30fc\u30c8\u30a2\u30d1\u30fc\u30c8'],
    ['\ud83d\udc4d\ud83c\udffd\ud83d\udc4d', '\ud83d\udc4d\ud83c\udffd\ud83d\udc4d'],
    ['\uff21\u0301', 'A'],
    ['\ufb01\u0301', 'fi'],
    ['e\u0301e\u0301\u0301', '\u00e9\u00e9'],
    ['\u4e2d\ufb01\u6587', '\u4e2dfi\u6587'],
  ];
  for (const [text, wanted] of table) assert.equal(normal(text), wanted, JSON.stringify(text));
  const cut = charsmap.slice(0, 100);
  assert.throws(() => makeNormalizer({ type: 'Precompiled', precompiled_charsmap: cut }, 'f'), /f: .*damaged/);
});

test('a word of 100,000 characters takes no quadratic time', () => {
  const letters = 'abcdefgh';
  const vocab = Object.fromEntries([...letters].map((c, i) => [c, i]));
  const merges: [string, string][] = [];
  for (const a of letters) for (const b of letters) merges.push([a, b]);
  for (const [a, b] of merges) vocab[a + b] = Object.keys(vocab).length;
  const scores = Object.keys(vocab).map((token) => [token, -token.length]);
  const models = [
    { type: 'BPE', vocab, merges },
    { type: 'Unigram', vocab: scores, unk_id: 0 },
    { type: 'WordPiece', vocab: { ...vocab, '[UNK]': 100 } },
  ];
  const word = Array.from({ length: 100_000 }, (_, i) => letters[(i * i + 3 * i) % 8]).join('');
  for (const model of models) {
    const tokenizer = new Tokenizer({ model }, {}, 'toy');
    const start = performance.now();
    assert.ok(tokenizer.encode(word).length > 0);
    assert.ok(performance.now() - start < 5_000, model.type);
  }
});

test('an invalid tokenizer file is refused, and the error names it', () => {
  const refused = (json: Record<string, unknown>, pattern: RegExp) =>
    assert.throws(
      () => new Tokenizer(json, {}, 'dir/tokenizer.json'),
      (e) => e instanceof GraftError && e.place === 'dir/tokenizer.json' && pattern.test(e.message),
    );
  const model = { type: 'BPE', vocab: { a: 0, b: 1 }, merges: [] };
  refused({ model: { ...model, type: 'BPX' } }, /Models of type "BPX" are not supported/);
  refused({ model: { ...model, merges: undefined } }, /no list of merges/);
  refused({ model: { ...model, merges: ['a b'] } }, /The merge "a b" contains a token that is not in the vocabulary/);
  refused({ model: { ...model, merges: ['a'] } }, /is not two tokens/);
  refused({ model: { ...model, unk_token: '<unk>' } }, /unk_token "<unk>" is not in the vocabulary/);
  refused({ model: { ...model, vocab: { a: 'x' } } }, /The id of "a" must be a whole number from 0, and is "x"/);
  refused({ model: { type: 'Unigram', vocab: [['a', 0], 'b'] } }, /Entry 1 of the vocabulary/);
  refused({ model, normalizer: { type: 'Odd' } }, /Normalizers of type "Odd"/);
  refused(
    { model, pre_tokenizer: { type: 'Split', pattern: { Regex: '(' }, behavior: 'Isolated' } },
    /The regular expression \( is not supported/,
  );
  refused(
    { model, pre_tokenizer: { type: 'Split', pattern: { String: '-' }, behavior: 'Odd' } },
    /"Odd" is not one of Removed/,
  );
  refused({ model, decoder: { type: 'Sequence' } }, /damaged/);
  refused({ model, added_tokens: [{ content: 'x' }] }, /needs content and id/);
  refused({ model, post_processor: { type: 'Odd' } }, /Post-processors of type "Odd"/);
  refused({}, /The file has no model/);
});

test('scores that are equal in the file are read as Python reads them, which decides between segmentations', () => {
  // x and y together score what xy does, but not as numbers that are read digit by digit.
  const scores: [x: number, y: number, xy: number][] = [
    [-3.517593801021576, -8.144857108592987, -11.662450909614563],
    [-7.873199492692947, -2.112984776496887, -9.986184269189835],
    [-8.381647884845734, -7.149322509765625, -15.530970394611359],
  ];
  for (const [x, y, xy] of scores) {
    assert.equal(x + y, xy);
    const vocab = Object.entries({ '<unk>': 0, x, y, xy });
    const t = new Tokenizer({ model: { type: 'Unigram', unk_id: 0, vocab } }, {}, 'x');
    assert.deepEqual([...t.encode('xy')], [1, 2]);
  }
});

test("normal forms leave marks in their order that are newer than the tables of Python's tokenizers", () => {
  const [nfc, nfd] = (['NFC', 'NFD'] as const).map((type) => makeNormalizer({ type }, '')!) as [
    (text: string) => string,
    (text: string) => string,
  ];
  for (const text of ['\u08cb\u08d2', 'e\u1df8\u0301', '\u0301\u1abf\u0316a', '\u0345\u0897\u0334']) {
    assert.equal(nfc(text), text);
  }
  assert.equal(nfc('a\u0301\u08d2\u0316'), '\u00e1\u08d2\u0316');
  assert.equal(nfc('a\u0316\u0301'), '\u00e1\u0316', 'older marks are ordered');
  assert.equal(nfd('\u00e9\u08d2\u0316'), 'e\u0301\u08d2\u0316');
});

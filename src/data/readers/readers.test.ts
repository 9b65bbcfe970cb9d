import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after } from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { hub } from '../../../test/samples/hub.ts';
import { GraftError, packageRoot } from '../../base/index.ts';
import {
  ChatTemplate,
  decodeImage,
  loadTokenizer,
  type ReadOptions,
  type RowSource,
  randomStream,
  readRecords,
  recordsOf,
  shuffled,
  toExample,
  toRows,
  toStep,
} from '../index.ts';

const dir = mkdtempSync(join(tmpdir(), 'graft-readers-'));
after(() => rmSync(dir, { recursive: true }));

function file(name: string, content: string | Uint8Array): string {
  const path = join(dir, name);
  writeFileSync(path, content);
  return path;
}
const values = async (path: string) => (await readRecords(path)).map(({ value }) => value);
const places = async (path: string) => (await readRecords(path)).map(({ place }) => place.slice(path.length));
const refusal = (path: string, pattern: RegExp) =>
  assert.rejects(readRecords(path), (e) => e instanceof GraftError && e.kind === 'input' && pattern.test(e.message));

test('JSONL: byte order mark, CRLF, empty lines, no line break at the end, other line separators inside a text', async () => {
  const path = file('a.jsonl', '\uFEFF{"text":"a"}\r\n\r\n  \n{"text":"b\u2028c\u2029d\u0085e"}\n{"text":"é👩🏽‍💻"}');
  assert.deepEqual(await values(path), [{ text: 'a' }, { text: 'b\u2028c\u2029d\u0085e' }, { text: 'é👩🏽‍💻' }]);
  assert.deepEqual(await places(path), [':1', ':4', ':5']);
});

test('JSONL: lines and characters across the chunks that are read at once', async () => {
  const text = 'é👩'.repeat(100_000);
  const path = file('long.jsonl', `{"text":"${text}"}\n{"text":"x${text}"}\n`);
  assert.deepEqual(await values(path), [{ text }, { text: `x${text}` }]);
});

test('JSONL: an invalid line is reported with its number and the problem', async () => {
  await refusal(file('b.jsonl', '{"text":"a"}\n\n{"text":"b"\n'), /b\.jsonl:3: the line is not valid JSON/);
  await refusal(file('c.jsonl', '{"text":"a"}\n[1]\n'), /c\.jsonl:2: .*this is a list/);
  await refusal(file('d.jsonl', 'null\n'), /d\.jsonl:1: .*null/);
  await refusal(file('e.jsonl', Buffer.from('7b2274223a22ff227d', 'hex')), /e\.jsonl:1: the line is not valid UTF-8/);
  await refusal(file('f.jsonl', '\n\r\n'), /f\.jsonl: the file has no rows/);
});

test('JSON: a list, or an object with a list under data', async () => {
  assert.deepEqual(await values(file('a.json', '\uFEFF[{"text":"a"},{"text":"b"}]')), [{ text: 'a' }, { text: 'b' }]);
  assert.deepEqual(await values(file('b.json', '{"data":[{"text":"a"}]}')), [{ text: 'a' }]);
  await refusal(file('c.json', '[{"text":"a"},3]'), /c\.json:row 2: .*a number/);
  await refusal(file('d.json', '{"text":"a"}'), /must hold a list/);
  await refusal(file('e.json', '[{'), /e\.json/);
});

test('CSV: quotes, line breaks in a field, byte order mark, CRLF', async () => {
  const path = file('a.csv', '\uFEFFprompt,completion\r\n"a, ""b""","c\nd"\r\n\r\ne,f\r\n');
  assert.deepEqual(await values(path), [
    { prompt: 'a, "b"', completion: 'c\nd' },
    { prompt: 'e', completion: 'f' },
  ]);
  await refusal(file('b.csv', 'a,b\n1,2\n3\n'), /b\.csv:3: the file is not valid CSV/);
  await refusal(file('c.csv', 'a,b\n'), /no rows/);
});

// Two rows of ids (a list of int64) and messages (a list of records), Snappy; by pyarrow 26.0.1.
const twoRows = [
  'UEFSMRUAFVgVTCwVCBUAFQYVBhwAAAAsFAIAAAADBgEGDAgDAQAJAQEOAQE8AwAAAAAAAAAEAAAAAAAAABUAFVIVSiwVBhUAFQYVBhwAAAApFA',
  'IAAAADBAEGJAYEBAAAAHVzZXIRCDAJAAAAYXNzaXN0YW50FQAVOBU2LBUGFQAVBhUGHAAAABwUAgAAAAMEAQYABgUGLMOpAQAAAGIBAAAAYxUE',
  'GZw1ABgGc2NoZW1hFQQANQIYA2lkcxUCFQZMPAAAADUEGARsaXN0FQIAFQQlAhgHZWxlbWVudAA1AhgIbWVzc2FnZXMVAhUGTDwAAAA1BBgEbG',
  'lzdBUCADUCGAdlbGVtZW50FQQAFQwlAhgEcm9sZSUATBwAAAAVDCUCGAdjb250ZW50JQBMHAAAABYEGRwZPCYAHBUEGSUGABk4A2lkcwRsaXN0',
  'B2VsZW1lbnQVAhYIFn4WciYISRwVABUAFQIAPCkmBAQZRgAAAAgAAAAmABwVDBklBgAZSAhtZXNzYWdlcwRsaXN0B2VsZW1lbnQEcm9sZRUCFg',
  'YWeBZwJnpJHBUAFQAVAgA8FiIZJgQCGVYAAAAABgAAACYAHBUMGSUGABlICG1lc3NhZ2VzBGxpc3QHZWxlbWVudAdjb250ZW50FQIWBhZeFlwm',
  '6gFJHBUAFQAVAgA8FggZJgQCGVYAAAAABgAAABbUAhYEJggWvgIAKCBwYXJxdWV0LWNwcC1hcnJvdyB2ZXJzaW9uIDI2LjAuMRk8HAAAHAAAHA',
  'AAAKEBAABQQVIx',
].join('');

test('JSON and CSV that are not UTF-8 are refused rather than guessed', async () => {
  for (const [name, text] of [
    ['latin.csv', 'text,label\ncaf\xe9,ham\n'],
    ['latin.json', '[{"text":"caf\xe9"}]'],
  ] as const) {
    writeFileSync(join(dir, name), Buffer.from(text, 'latin1'));
    await assert.rejects(readRecords(join(dir, name)), /not valid UTF-8.*Save it as UTF-8/s);
  }
});

test('Parquet: lists and records, 64-bit integers as numbers', async () => {
  assert.deepEqual(await values(file('two.parquet', Buffer.from(twoRows, 'base64'))), [
    { ids: [1, 2, 3], messages: [{ role: 'user', content: 'é' }] },
    {
      ids: [4],
      messages: [
        { role: 'user', content: 'b' },
        { role: 'assistant', content: 'c' },
      ],
    },
  ]);
});

// One row of messages, with calls whose arguments are x and y, and tools, all null where they are left out; by pyarrow 26.0.1.
const withNulls = [
  'UEFSMRUAFUIVQiwVBBUAFQYVBhwAAAACAAAAAwICAAAABAQEAAAAdXNlcgkAAABhc3Npc3RhbnQVABUmFSYsFQQVABUGFQYcAAAAAgAAAAMCBAAAAA',
  'McAAABAAAAYRUAFR4VHiwVBBUAFQYVBhwAAAADAAAAAwQABAAAAAMzAAAVABUqFSosFQQVABUGFQYcAAAAAwAAAAMEAAUAAAADgwAAAAEAAABmFQAV',
  'KhUqLBUEFQAVBhUGHAAAAAMAAAADBAAFAAAAA5MAAAABAAAAMRUAFSAVICwVBBUAFQYVBhwAAAADAAAAAwQABQAAAAODAAAAFQAVDBUMLBUCFQAVBh',
  'UGHAAAAAIAAAACABUEGfwQNQAYBnNjaGVtYRUEADUCGAhtZXNzYWdlcxUCFQZMPAAAADUEGARsaXN0FQIANQIYB2VsZW1lbnQVBgAVDCUCGARyb2xl',
  'JQBMHAAAABUMJQIYB2NvbnRlbnQlAEwcAAAANQIYCnRvb2xfY2FsbHMVAhUGTDwAAAA1BBgEbGlzdBUCADUCGAdlbGVtZW50FQQAFQwlAhgCaWQlAE',
  'wcAAAANQIYCGZ1bmN0aW9uFQQAFQwlAhgEbmFtZSUATBwAAAA1AhgJYXJndW1lbnRzFQQAFQwlAhgBeCUATBwAAAAVDCUCGAF5JQBMHAAAABUMJQIY',
  'BXRvb2xzJQBMHAAAABYCGRwZfCYAHBUMGSUGABlICG1lc3NhZ2VzBGxpc3QHZWxlbWVudARyb2xlFQAWBBZoFmgmCEkcFQAVABUCADwWGhkmAgIZVg',
  'AAAAAEAAAAJgAcFQwZJQYAGUgIbWVzc2FnZXMEbGlzdAdlbGVtZW50B2NvbnRlbnQVABYEFkwWTCZwSRwVABUAFQIAPBYCGSYCAhlWAAAAAgIAAAAm',
  'ABwVDBklBgAZeAhtZXNzYWdlcwRsaXN0B2VsZW1lbnQKdG9vbF9jYWxscwRsaXN0B2VsZW1lbnQCaWQVABYEFkQWRCa8AUkcFQAVABUCADwWABk2Ag',
  'IAGYYAAAACAAACAAAAACYAHBUMGSUGABmICG1lc3NhZ2VzBGxpc3QHZWxlbWVudAp0b29sX2NhbGxzBGxpc3QHZWxlbWVudAhmdW5jdGlvbgRuYW1l',
  'FQAWBBZQFlAmgAJJHBUAFQAVAgA8FgIZNgICABmWAAAAAgAAAAACAAAAJgAcFQwZJQYAGZgIbWVzc2FnZXMEbGlzdAdlbGVtZW50CnRvb2xfY2FsbH',
  'MEbGlzdAdlbGVtZW50CGZ1bmN0aW9uCWFyZ3VtZW50cwF4FQAWBBZQFlAm0AJJHBUAFQAVAgA8FgIZNgICABmmAAAAAgAAAAAAAgAAACYAHBUMGSUG',
  'ABmYCG1lc3NhZ2VzBGxpc3QHZWxlbWVudAp0b29sX2NhbGxzBGxpc3QHZWxlbWVudAhmdW5jdGlvbglhcmd1bWVudHMBeRUAFgQWRhZGJqADSRwVAB',
  'UAFQIAPBYAGTYCAgAZpgAAAAIAAAAAAgAAAAAmABwVDBklBgAZGAV0b29scxUAFgIWMhYyJuYDSRwVABUAFQIAPBYAGQYZJgIAAAAAFpAEFgImCBaQ',
  'BAAoIHBhcnF1ZXQtY3BwLWFycm93IHZlcnNpb24gMjYuMC4xGXwcAAAcAAAcAAAcAAAcAAAcAAAcAAAA3QMAAFBBUjE=',
].join('');

test('Parquet: fields of records that are null are not there, columns that are null are', async () => {
  assert.deepEqual(await values(file('nulls.parquet', Buffer.from(withNulls, 'base64'))), [
    {
      messages: [
        { role: 'user', content: 'a' },
        { role: 'assistant', tool_calls: [{ function: { name: 'f', arguments: { x: '1' } } }] },
      ],
      tools: null,
    },
  ]);
});

test('JSON Lines in a .json file, a list in a .jsonl file', async () => {
  const rows = [{ text: 'a' }, { text: 'b' }];
  const lines = rows.map((row) => JSON.stringify(row)).join('\n');
  const list = JSON.stringify(rows, null, 2);
  for (const path of [file('lines.json', lines), file('list.jsonl', list), file('lines2.json', `\n${lines}\n\n`)])
    assert.deepEqual(await values(path), rows, path);
  await refusal(file('bad.json', `${lines}\n{"text":\n`), /bad\.json:3: the line is not valid JSON/);
  await refusal(file('bad-list.jsonl', '[{"text": "a"},'), /bad-list\.jsonl/);
});

test('compressed files of every format', async () => {
  const row = { text: 'é', label: 'a' };
  const contents: Record<string, string> = {
    jsonl: `${JSON.stringify(row)}\n`,
    json: JSON.stringify([row]),
    csv: 'text,label\né,a\n',
    tsv: 'text\tlabel\né\ta\n',
    conll: 'é a\n',
  };
  let read = 0;
  for (const [extension, text] of Object.entries(contents)) {
    const expected = extension === 'conll' ? { tokens: ['é'], tags: ['a'] } : row;
    for (const [suffix, bytes] of [
      ['', Buffer.from(text)],
      ['.gz', gzipSync(text)],
      ['.zst', zstdCompressSync(text)],
    ] as const) {
      assert.deepEqual(await values(file(`packed.${extension}${suffix}`, bytes)), [expected], extension + suffix);
      read++;
    }
  }
  assert.equal(read, 15);
  await refusal(
    file('cut.jsonl.gz', gzipSync('{"text":"a"}\n').subarray(0, 20)),
    /cut\.jsonl\.gz: the file cannot be read/,
  );
  await refusal(file('no.jsonl.gz', 'text'), /no\.jsonl\.gz: the file cannot be read: incorrect header check/);
});

test('CSV: lines are counted through fields with line breaks of every kind', async () => {
  const text = 'text,label\r\n"a\r\nb\r\nc",1\r\n\r\nd,2\r\n"e\nf",3\r\ng,4\r\n';
  assert.deepEqual(await places(file('crlf.csv', text)), [':2', ':6', ':7', ':9']);
  await refusal(
    file('short.csv', text.replace('g,4', 'g')),
    /short\.csv:9: .*the row has 1 field, and the first line 2 fields/,
  );
  await refusal(file('quote.csv', text.replace('g,4', 'g"h,4')), /quote\.csv:9: .*Invalid Opening Quote/);
  await refusal(file('open.csv', text.replace('g,4', '"g,4')), /open\.csv:9: .*Quote Not Closed/);
});

test('CSV: the delimiter is found in the first lines, or given', async () => {
  const row = { text: 'a, b', label: '1,5' };
  for (const [name, delimiter] of [
    ['semicolon', ';'],
    ['tab', '\t'],
    ['bar', '|'],
  ] as const)
    assert.deepEqual(await values(file(`${name}.csv`, `text${delimiter}label\na, b${delimiter}1,5\n`)), [row]);
  assert.deepEqual(await values(file('one.csv', 'text\na;b\n')), [{ text: 'a;b' }]);
  assert.deepEqual(await values(file('two.csv', 'id,text;more\n1,a;b\n2,c\n')), [
    { id: '1', 'text;more': 'a;b' },
    { id: '2', 'text;more': 'c' },
  ]);
  const asked = await readRecords(file('hash.csv', 'text#label\na#b\n'), { delimiter: '#' });
  assert.deepEqual(
    asked.map(({ value }) => value),
    [{ text: 'a', label: 'b' }],
  );
});

test('a delimiter that no file uses is named', async () => {
  const notesOf = async (source: RowSource, delimiterMayLack = false) => {
    const notes: string[] = [];
    await recordsOf(source, 'data.train', { delimiter: '#', delimiterMayLack, note: (text) => notes.push(text) });
    return notes;
  };
  const images = join(dir, 'delimited');
  mkdirSync(join(images, 'a'), { recursive: true });
  writeFileSync(join(images, 'a', '1.png'), '');
  const [lines, tabs, csv] = [
    file('given.jsonl', '{"text":"a"}'),
    file('given.tsv', 'text\tlabel\na\tb\n'),
    file('given.csv', 'text#label\na#b\n'),
  ];
  for (const path of [lines, tabs, images])
    assert.deepEqual(await notesOf(path), [`${path}: data.delimiter is not used, since it is for .csv files`]);
  assert.deepEqual(await notesOf([{ text: 'a' }]), [
    'data.train: data.delimiter is not used, since it is for .csv files',
  ]);
  assert.deepEqual([await notesOf(csv), await notesOf(lines, true)], [[], []]);
  for (const name of ['a/2.png', 'b/1.png', 'b/2.png']) {
    mkdirSync(join(images, name[0]!), { recursive: true });
    writeFileSync(join(images, name), '');
  }
  const labels = (await readRecords(images, { limit: 3 })).map(({ value }) => value.label);
  assert.deepEqual(labels, ['a', 'b', 'a'], 'of each label in turn');
  await assert.rejects(readRecords(images, { columns: { label: 'kind' } }), /no row has the column 'kind'/);
});

test('two columns of one name are refused', async () => {
  await refusal(
    file('twice.csv', 'text,label,text\na,b,c\n'),
    /twice\.csv:1: columns 1 and 3 have the same name, 'text'/,
  );
  const doubled = '{"a":{"text":1},"text":"\\"a","b":[],"t\\u0065xt":"b"}';
  await refusal(file('twice.jsonl', doubled), /twice\.jsonl:1: columns 2 and 4 have the same name, 'text'/);
  const nested = '{"text":{"text":"a"},"a":[{"text":"b"},{"text":"c"}]}';
  assert.equal((await values(file('nested.jsonl', nested))).length, 1);
  await refusal(file('twice.parquet', Buffer.from(twoTexts, 'base64')), /twice\.parquet: columns 1 and 2 have/);
});

test('the first twenty bad rows are told at once, each problem with its places', async () => {
  const lines = Array.from({ length: 40 }, (_, i) => (i % 2 === 0 ? 'a,b' : i === 1 ? 'a,b,c' : 'a'));
  await assert.rejects(readRecords(file('many.csv', ['text,label', ...lines].join('\n'))), (error: GraftError) => {
    assert.match(
      error.message,
      /^.*many\.csv:3: .*has 3 fields.*\n.*many\.csv:5: .*has 1 field.*\(also line 7, line 9, line 11, line 13, line 15 and 13 more\)/,
    );
    assert.match(error.message, /the first 20 rows cannot be used/);
    assert.equal((error.data.rows as unknown[]).length, 20);
    return true;
  });
  await refusal(
    file('two.jsonl', '{"text":"a"}\n{\n[]\n{"text":"b"}\n'),
    /two\.jsonl:2: .*\n.*two\.jsonl:3: .*\n2 rows cannot be used/,
  );
  await refusal(file('two.conll', 'a\n\nb X\nc\n'), /two\.conll:1: the line has a word but no tag \(also line 4\)/);
});

test('CoNLL: spaces and tabs separate columns, other white space is a part of words', async () => {
  const path = file('a.conll', 'New\u00a0York NNP B-LOC\n\u3000\tX  O\r\n\n-DOCSTART- O\n\na\u2009b\tX\tO\n');
  assert.deepEqual(await values(path), [
    { tokens: ['New\u00a0York', '\u3000'], tags: ['B-LOC', 'O'] },
    { tokens: ['a\u2009b'], tags: ['O'] },
  ]);
  assert.deepEqual(await places(path), [':1', ':6']);
});

test('CoNLL: comments are told from words that begin with #, other columns and numbers for words are refused', async () => {
  const path = file('c.conll', '# id = 1\n#now NNP O\nAda NNP B-PER\n\n# id = 2\n# a\nin IN O\n# # O\n');
  const notes: string[] = [];
  const records = await readRecords(path, { note: (text) => notes.push(text) });
  assert.deepEqual(
    records.map(({ value }) => value),
    [
      { tokens: ['#now', 'Ada'], tags: ['O', 'B-PER'] },
      { tokens: ['in', '#'], tags: ['O', 'O'] },
    ],
  );
  assert.deepEqual(notes, [`${path}: 3 comments are not read`]);
  await refusal(
    file('d.conll', 'Ada NNP B-PER\nwas VBD\n'),
    /d\.conll:2: the line has 2 columns, and the first word has 3/,
  );
  const numbered = '# text = I can\n1\tI\tPRON\n2-3\tcannot\t_\n2\tcan\tAUX\n3\tnot\tPART\n\n';
  await refusal(file('e.conll', numbered), /e\.conll:2: the first column has the numbers of the words/);
});

test('folders of shards, patterns and lists are read in the order of their names, up to a limit', async () => {
  const folder = join(dir, 'shards');
  mkdirSync(folder);
  const shard = (name: string, ...texts: string[]) =>
    writeFileSync(join(folder, name), texts.map((text) => JSON.stringify({ text })).join('\n'));
  shard('rows-00001.jsonl', 'c');
  shard('rows-00000.jsonl', 'a', 'b');
  writeFileSync(join(folder, 'README.md'), 'no');
  const texts = async (source: RowSource, options: ReadOptions = {}) =>
    (await recordsOf(source, 'rows', options)).map(({ value }) => value.text);
  assert.deepEqual(await texts(folder), ['a', 'b', 'c']);
  assert.deepEqual(await texts(join(folder, 'rows-*.jsonl')), ['a', 'b', 'c']);
  assert.deepEqual(await texts([join(folder, 'rows-00001.jsonl'), join(folder, '*0.jsonl')]), ['c', 'a', 'b']);
  assert.deepEqual(await texts(folder, { limit: 2 }), ['a', 'b']);
  assert.deepEqual(await texts([{ text: 'x' }, { text: 'y' }], { limit: 1 }), ['x']);
  const notes: string[] = [];
  writeFileSync(join(folder, 'log.txt'), '');
  await texts(folder, { note: (text) => notes.push(text) });
  assert.deepEqual(notes, [`${folder}: not read: log.txt`]);
  await assert.rejects(texts(join(folder, '*.csv')), /no file matches this pattern/);
  await assert.rejects(
    texts([folder, join(folder, '*1.jsonl')]),
    /rows-00001\.jsonl:1: two paths of the data name the same row/,
  );
  shard('rows.csv', 'd');
  await assert.rejects(texts(folder), /files of several formats: \.jsonl, \.csv/);
  rmSync(join(folder, 'rows.csv'));
  shard('test-0.jsonl', 'd');
  shard('train-0.jsonl', 'd');
  await assert.rejects(texts(folder), /files of several splits: no name, test, train/);
});

test('a data set on the hub is a source like any other', async () => {
  const cache = join(dir, 'cache');
  const files = { 'data/train-00000.parquet': Buffer.from(packed.zstd, 'base64'), 'README.md': Buffer.from('no') };
  await using server = await hub(files, () => false, 'dataset');
  Object.assign(process.env, { GRAFT_CACHE: cache, HF_ENDPOINT: server.endpoint });
  const columns = { completion: 'text' };
  const records = await recordsOf(['hub:org/name', file('more.jsonl', '{"text":"c"}')], 'rows', { columns });
  assert.deepEqual(
    records.map(({ value }) => value.completion),
    ['alpha beta', 'beta alpha', 'c'],
  );
  assert.ok(records[0]!.place.startsWith(cache) && records[0]!.place.endsWith('data/train-00000.parquet:row 1'));
});

test('columns are renamed, swapped, and missed with the nearest name', async () => {
  const path = file('body.jsonl', '{"body":"a","category":"x","id":3}\n{"body":"b"}\n');
  const read = async (columns: Record<string, string>) =>
    (await readRecords(path, { columns })).map(({ value }) => value);
  assert.deepEqual(await read({ text: 'body', label: 'category' }), [{ id: 3, text: 'a', label: 'x' }, { text: 'b' }]);
  assert.deepEqual((await read({ body: 'category', category: 'body' }))[0], { id: 3, body: 'x', category: 'a' });
  await assert.rejects(
    read({ text: 'boddy' }),
    /data\.columns: no row has the column 'boddy', which text is to be\. Did you mean 'body'\?/,
  );
  await assert.rejects(read({ text: 'utterance' }), /The columns are body, category, id/);
  const images = file('photos.csv', 'photo,label\na.png,x\n');
  assert.deepEqual((await readRecords(images, { columns: { image: 'photo' } }))[0]!.value.image, join(dir, 'a.png'));
});

/** Two columns `text`; by pyarrow 26.0.1. */
const twoTexts =
  'UEFSMRUAFRYVFiwVAhUAFQYVBhwAAAACAAAAAgEBAAAAYRUAFRYVFiwVAhUAFQYVBhwAAAACAAAAAgEBAAAAYhUEGTw1ABgGc2NoZW1hFQQAFQwlAhgEdGV4dCUATBwAAAAVDCUCGAR0ZXh0JQBMHAAAABYCGRwZLCYAHBUMGSUGABkYBHRleHQVABYCFjwWPCYISRwVABUAFQIAPBYCGQYZJgACAAAAJgAcFQwZJQYAGRgEdGV4dBUAFgIWPBY8JkRJHBUAFQAVAgA8FgIZBhkmAAIAAAAWeBYCJggWeAAoIHBhcnF1ZXQtY3BwLWFycm93IHZlcnNpb24gMjYuMC4xGSwcAAAcAAAAywAAAFBBUjE=';
/** Rows {text: 'alpha beta'}, {text: 'beta alpha'} packed in each way; by pyarrow 26.0.1. */
const packed = {
  zstd: 'UEFSMRUAFUQVViwVBBUAFQYVBhwAAAAotS/9ICIRAQACAAAABAEKAAAAYWxwaGEgYmV0YQoAAABiZXRhIGFscGhhFQQZLDUAGAZzY2hlbWEVAgAVDCUCGAR0ZXh0JQBMHAAAABYEGRwZHCYAHBUMGSUGABkYBHRleHQVDBYEFmoWfCYISRwVABUAFQIAPBYoGQYZJgAEAAAAFmoWBCYIFnwAKCBwYXJxdWV0LWNwcC1hcnJvdyB2ZXJzaW9uIDI2LjAuMRkcHAAAAIgAAABQQVIx',
  gzip: 'UEFSMRUAFUQVWiwVBBUAFQYVBhwAAAAfiwgAAAAAAAIDY2JgYGBh5AKSiTkFGYkKSakliSAeiFYACwEAs5homyIAAAAVBBksNQAYBnNjaGVtYRUCABUMJQIYBHRleHQlAEwcAAAAFgQZHBkcJgAcFQwZJQYAGRgEdGV4dBUEFgQWahaAASYISRwVABUAFQIAPBYoGQYZJgAEAAAAFmoWBCYIFoABACggcGFycXVldC1jcHAtYXJyb3cgdmVyc2lvbiAyNi4wLjEZHBwAAACKAAAAUEFSMQ==',
  brotli:
    'UEFSMRUAFUQVQiwVBBUAFQYVBhwAAAAbIQAABDxkZ5KSDhtwwF7WRsNEDqMs/P4FluOG+Q0KzgwVBBksNQAYBnNjaGVtYRUCABUMJQIYBHRleHQlAEwcAAAAFgQZHBkcJgAcFQwZJQYAGRgEdGV4dBUIFgQWahZoJghJHBUAFQAVAgA8FigZBhkmAAQAAAAWahYEJggWaAAoIHBhcnF1ZXQtY3BwLWFycm93IHZlcnNpb24gMjYuMC4xGRwcAAAAiAAAAFBBUjE=',
  lz4: 'UEFSMRUAFUQVRiwVBBUAFQYVBhwAAADwBQIAAAAEAQoAAABhbHBoYSBiZXRhDgCgYmV0YSBhbHBoYRUEGSw1ABgGc2NoZW1hFQIAFQwlAhgEdGV4dCUATBwAAAAWBBkcGRwmABwVDBklBgAZGAR0ZXh0FQ4WBBZqFmwmCEkcFQAVABUCADwWKBkGGSYABAAAABZqFgQmCBZsACggcGFycXVldC1jcHAtYXJyb3cgdmVyc2lvbiAyNi4wLjEZHBwAAACIAAAAUEFSMQ==',
};
/** Images as the datasets library stores them, the first with its bytes, the second with its path; a label, and bytes of which only the second are text; by pyarrow 26.0.1. */
const withImages =
  'UEFSMRUAFaYBFaYBLBUEFQAVBhUGHAAAAAMAAAADBgBIAAAAiVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAIAAAB7QOjdAAAAD0lEQVR4nGM8IafBwMAAAAX0ARAOOygmAAAAAElFTkSuQmCCFQAVMBUwLBUEFQAVBhUGHAAAAAIAAAAEAgUAAABhLnBuZwUAAABiLnBuZxUAFSwVLCwVBBUAFQYVBhwAAAACAAAABAEBAAAAAAAAAAAAAAAAAAAAFQAVKBUoLBUEFQAVBhUGHAAAAAIAAAAEAQIAAAD//gQAAAB0ZXh0FQQZbDUAGAZzY2hlbWEVBgA1AhgFaW1hZ2UVBAAVDCUCGAVieXRlcwAVDCUCGARwYXRoJQBMHAAAABUEJQIYBWxhYmVsABUMJQIYA3JhdwAWBBkcGUwmABwVDBklBgAZKAVpbWFnZQVieXRlcxUAFgQW0AEW0AEmCEkcFQAVABUCADwWkAEZBhk2AAICAAAAJgAcFQwZJQYAGSgFaW1hZ2UEcGF0aBUAFgQWVhZWJtgBSRwVABUAFQIAPBYUGQYZNgAABAAAACYAHBUEGSUGABkYBWxhYmVsFQAWBBZSFlImrgJJHBUAFQAVAgA8KQYZJgAEAAAAJgAcFQwZJQYAGRgDcmF3FQAWBBZOFk4mgANJHBUAFQAVAgA8FgwZBhkmAAQAAAAWxgMWBCYIFsYDACggcGFycXVldC1jcHAtYXJyb3cgdmVyc2lvbiAyNi4wLjEZTBwAABwAABwAABwAAABhAQAAUEFSMQ==';

test('Parquet: every way of packing', async () => {
  let read = 0;
  for (const [codec, content] of Object.entries(packed)) {
    const rows = await values(file(`${codec}.parquet`, Buffer.from(content, 'base64')));
    assert.deepEqual(rows, [{ text: 'alpha beta' }, { text: 'beta alpha' }], codec);
    read++;
  }
  assert.equal(read, 4);
});

test('Parquet: images keep their bytes, or become a path; other bytes are text where they are', async () => {
  const [first, second] = await values(file('images.parquet', Buffer.from(withImages, 'base64')));
  const { bytes, path } = first!.image as { bytes: Uint8Array; path: string };
  const image = await decodeImage(bytes, path);
  assert.deepEqual([image.width, image.height, ...image.data], [2, 1, 200, 30, 40, 200, 30, 40]);
  assert.deepEqual(second!.image, join(dir, 'b.png'));
  assert.deepEqual([first!.raw, second!.raw], [Uint8Array.of(255, 254), 'text']);
  assert.deepEqual([first!.label, second!.label], [1, 0]);
});

test('Parquet: a file of another kind is refused', async () => {
  await refusal(file('a.parquet', 'PAR1 nothing PAR1'), /a\.parquet: the Parquet file cannot be read/);
  await refusal(file('b.parquet', ''), /b\.parquet/);
});

test('missing and unsupported files', async () => {
  await assert.rejects(readRecords(join(dir, 'none.jsonl')), /the data file was not found/);
  await assert.rejects(readRecords(file('a.xml', '<a/>')), /'\.xml' are not supported.*\.jsonl/);
  await assert.rejects(readRecords(dir), GraftError);
});

const seeds = [
  '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}]}\n{"messages":[{"role":"assistant","content":"a"}]}\n',
  '{"prompt":"a","completion":"b"}\n{"prompt":"é\\u00e9","completion":"c"}\r\n',
  '{"ids":[1,2,3],"labels":[-100,2,3]}\n{"ids":[4,5]}\n',
  '{"rows":[{"ids":[1,2],"labels":[1,2]},{"ids":[3,4]}]}\n',
  '{"text":"a b c"}\n\n{"text":"👩🏽‍💻"}\n',
  '{"instruction":"a","input":"","output":"b"}\n{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}\n',
];
const insertions = [
  '{',
  '}',
  '[',
  ']',
  '"',
  '\\',
  ',',
  ':',
  '\n',
  '\0',
  'null',
  '-1',
  '1e999',
  '"ids"',
  '{"text":',
  '\uFEFF',
  '9'.repeat(30),
];

const damagedFiles = 2500;

test(`${damagedFiles} damaged JSONL files are read or refused with a place, nothing else`, async () => {
  const tokenizer = loadTokenizer(join(packageRoot, 'test', 'golden', 'tokenizer', 'llama2.json'));
  const chat = new ChatTemplate(
    '{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}',
  );
  const options = { tokenizer, chat, vocabSize: tokenizer.vocabSize, maxLength: 64, trainOn: 'completion' } as const;
  let [read, refused] = [0, 0];
  for (let n = 0; n < damagedFiles; n++) {
    const random = randomStream(n, 11);
    const pick = (below: number) => Math.floor(random() * below);
    let bytes = Buffer.from(seeds[n % seeds.length]!);
    for (let change = 0; change <= pick(2); change++) {
      const at = pick(bytes.length + 1);
      const insert = [Buffer.from(insertions[pick(insertions.length)]!), Buffer.of(pick(256)), Buffer.alloc(0)][
        pick(3)
      ]!;
      bytes = Buffer.concat([bytes.subarray(0, at), insert, bytes.subarray(at + pick(3))]);
      if (pick(12) === 0) bytes = bytes.subarray(0, pick(bytes.length));
      if (pick(20) === 0) bytes = Buffer.concat(shuffled(bytes.length, random).map((i) => bytes.subarray(i, i + 1)));
    }
    const path = file('fuzz.jsonl', bytes);
    try {
      for (const record of await readRecords(path)) {
        const { place } = record;
        toRows('rows' in record.value ? toStep(record) : [{ example: toExample(record, 'auto'), place }], options);
      }
      read++;
    } catch (error) {
      if (!(error instanceof GraftError))
        throw new Error(`file ${n}: ${JSON.stringify(bytes.toString())}`, { cause: error });
      assert.ok(error.message.length < 2000, `file ${n}: a message of ${error.message.length} characters`);
      refused++;
    }
  }
  assert.equal(read + refused, damagedFiles);
  console.log(`${damagedFiles} files: ${read} read, ${refused} refused`);
  assert.ok(read > 50 && refused > 300, `${read} read, ${refused} refused`);
});

test('numbers and keys that templates print come from the file as they are written; all other numbers are JavaScript’s', async () => {
  const args = '{"t": 20.0, "id": 9007199254740993, "z": 1, "10": 1e2, "9": [2.50]}';
  const call = `{"function": {"name": "f", "arguments": ${args}}}`;
  const tool = '{"function": {"name": "f", "parameters": {"default": 1.0}}}';
  const row = `{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "weight": 1.0, "tool_calls": [${call}]}], "tools": [${tool}]}`;
  const asText = `{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": ${JSON.stringify(`{"name": "f", "arguments": ${args}}`)}}], "tools": ${JSON.stringify(`[${tool}]`)}}`;
  const chat = new ChatTemplate(
    '{{ messages[1].tool_calls[0].function.arguments | tojson }}{{ tools[0].function.parameters }}',
  );
  const printed = args.replace('1e2', '100.0').replace('2.50', '2.5');
  const records = [
    ...(await readRecords(file('numbers.jsonl', `${row}\n${asText}\n`))),
    ...(await readRecords(file('numbers.json', `[${row}, ${asText}]`))),
    ...(await readRecords(file('numbers-in-data.json', `{"data": [${row}]}`))),
  ];
  for (const record of records) {
    const example = toExample(record, 'auto');
    assert.ok(example.kind === 'chat' && example.notLearned === undefined, record.place);
    assert.equal(chat.render(example.messages, { tools: example.tools }), `${printed}{'default': 1.0}`, record.place);
  }
  assert.equal(records.length, 5);
  const [labelled] = await values(file('labels.jsonl', '{"text": "a", "label": 1.0}\n'));
  assert.deepEqual(labelled, { text: 'a', label: 1 });
  const [numbered] = await values(file('ids.jsonl', '{"id": 100000000000000001, "text": "a", "n": 2.0, "m": 1e300}\n'));
  const [large] = await readRecords(file('large.jsonl', '{"text": "a", "label": 12345678901234567}\n'));
  assert.deepEqual(toExample(large!, 'auto'), {
    kind: 'labelled',
    text: 'a',
    pair: undefined,
    label: '12345678901234567',
  });
  assert.equal(JSON.stringify(numbered), '{"id":100000000000000001,"text":"a","n":2,"m":1e300}');
});

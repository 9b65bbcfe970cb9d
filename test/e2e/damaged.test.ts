/** Files of a model that are not what they say, through the command line: every one is refused in one sentence. */
import assert from 'node:assert/strict';
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after } from 'node:test';
import { golden } from '../support.ts';
import { assertRefused, graft } from './cli.ts';

const dir = mkdtempSync(join(tmpdir(), 'graft-damaged-'));
after(() => rmSync(dir, { recursive: true }));
writeFileSync(join(dir, 'ids.json'), '[[1, 2]]');

const original = readFileSync(golden('models', 'llama3', 'model.safetensors'));
const gguf = readFileSync(golden('gguf', 'llama.gguf'));

type Header = Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;

/** A copy of the tiny model whose safetensors file is replaced. */
function weights(bytes: Uint8Array): string {
  cpSync(golden('models', 'llama3'), join(dir, 'model'), { recursive: true });
  writeFileSync(join(dir, 'model', 'model.safetensors'), bytes);
  return 'model';
}

/** The same with a header that `change` got at, its length kept true. */
function header(change: (header: Header, names: string[]) => void): string {
  const length = Number(original.readBigUInt64LE(0));
  const parsed = JSON.parse(original.toString('utf8', 8, 8 + length)) as Header;
  change(
    parsed,
    Object.keys(parsed).filter((name) => name !== '__metadata__'),
  );
  const json = Buffer.from(JSON.stringify(parsed));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(json.byteLength));
  return weights(Buffer.concat([size, json, original.subarray(8 + length)]));
}

function config(change: object): string {
  cpSync(golden('models', 'llama3'), join(dir, 'model'), { recursive: true });
  const path = join(dir, 'model', 'config.json');
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), ...change }));
  return 'model';
}

/** The tiny GGUF with `bytes` at `at`, or behind `key` and its type. */
function blocks(at: number | string, bytes: (view: Buffer) => void): string {
  const copy = Buffer.from(gguf);
  const place = typeof at === 'number' ? at : copy.indexOf(at) + at.length;
  assert.ok(place >= 0);
  bytes(copy.subarray(place));
  writeFileSync(join(dir, 'model.gguf'), copy);
  return 'model.gguf';
}

const u32 =
  (value: number, skip = 4) =>
  (view: Buffer) =>
    view.writeUInt32LE(value, skip);
const u64 = (value: bigint) => (view: Buffer) => view.writeBigUInt64LE(value);
/** The tensor table's entry behind a name: axes (u32), sizes (u64 each), type (u32), offset (u64). */
const type = (value: number) => (view: Buffer) => view.writeUInt32LE(value, 4 + 8 * view.readUInt32LE(0));
const offset = (value: bigint) => (view: Buffer) => view.writeBigUInt64LE(value, 8 + 8 * view.readUInt32LE(0));
const table = 'blk.0.attn_q.weight';

const cut = (from: Buffer, size: number, name: string) => {
  writeFileSync(join(dir, name), from);
  truncateSync(join(dir, name), size);
  return name;
};

const cases: [string, () => string, RegExp][] = [
  ['a web page', () => weights(Buffer.from('<!doctype html><html></html>')), /model\.safetensors: .*it is a web page/],
  ['an empty file', () => weights(Buffer.alloc(0)), /it has 0 bytes/],
  ['a cut file', () => weights(original.subarray(0, 5000)), /\d+ bytes are missing/],
  ['a cut header', () => weights(original.subarray(0, 100)), /truncated one: it has 100 bytes/],
  [
    'a header of 2^62 bytes',
    () => weights(Buffer.concat([Buffer.from('0000000000000040', 'hex'), original.subarray(8)])),
    /header of 4611686018427387904 bytes/,
  ],
  [
    'overlapping offsets',
    () =>
      header((h, names) => {
        const [a, b] = names.filter((name) => name.endsWith('input_layernorm.weight')) as [string, string];
        h[b]!.data_offsets = h[a]!.data_offsets;
      }),
    /layernorm\.weight.* overlaps the one before it/,
  ],
  [
    'offsets past the end',
    () =>
      header((h, names) => {
        const [from, to] = h[names[0]!]!.data_offsets;
        h[names[0]!]!.data_offsets = [from + 1e9, to + 1e9];
      }),
    /leaves a gap|are missing/,
  ],
  [
    'a shape of 2^100 elements',
    () =>
      header((h, names) => {
        h[names[0]!]!.shape = [2 ** 50, 2 ** 50];
      }),
    /more than 2\^53 elements/,
  ],
  [
    'an unknown type',
    () =>
      header((h, names) => {
        h[names[0]!]!.dtype = 'X9';
      }),
    /unknown type "X9"/,
  ],
  [
    'a foreign type',
    () =>
      header((h, names) => {
        h[names[0]!]!.dtype = 'F8_E4M3';
      }),
    /F8_E4M3, which is not supported/,
  ],
  ['a number of layers that is nonsense', () => config({ num_hidden_layers: 1e8 }), /layers\.3\..*is missing.* more/],
  ['a vocabulary of another size', () => config({ vocab_size: 10 ** 12 }), /requires \[1000000000000, 32\]/],
  [
    'a config that lacks something',
    () => config({ hidden_size: undefined, num_attention_heads: 'two' }),
    /config\.json: hidden_size is missing; num_attention_heads: must be a number, but is "two"/,
  ],
  ['an unknown family', () => config({ model_type: 't5000' }), /config\.json: model_type 't5000'.*Supported are llama/],
  ['GGUF: wrong magic', () => blocks(0, u32(0x58585858, 0)), /model\.gguf: Not a GGUF file: it starts with "XXXX"/],
  ['GGUF: an unknown version', () => blocks(0, u32(9)), /GGUF version 9; Graft reads 2 and 3/],
  ['GGUF: 2^60 tensors', () => blocks(8, u64(2n ** 60n)), /1152921504606846976, more than the size of any file/],
  ['GGUF: 2^40 keys', () => blocks(16, u64(2n ** 40n)), /the file has only \d+ left/],
  ['GGUF: a cut header', () => cut(gguf, 200, 'head.gguf'), /head\.gguf: .*the file has only \d+ left/],
  ['GGUF: cut data', () => cut(gguf, gguf.length - 600, 'cut.gguf'), /cut\.gguf: .*but the file at byte/],
  ['GGUF: an unknown tensor type', () => blocks(table, type(99)), /attn_q\.weight" has the unknown type 99/],
  ['GGUF: a type that is not read', () => blocks(table, type(16)), /IQ2_XXS.*Quantise the model as/],
  ['GGUF: an offset past the end', () => blocks(table, offset(2n ** 40n)), /ends at byte \d+, but the file at byte/],
  ['GGUF: overlapping tensors', () => blocks(table, offset(0n)), /overlap/],
  ['GGUF: 2^31 layers', () => blocks('llama.block_count', u32(2 ** 31)), /is missing.* more/],
  ['GGUF: no heads', () => blocks('llama.attention.head_count', u32(0)), /model\.gguf: num_attention_heads/],
];

for (const [name, make, sentence] of cases) {
  test(name, () => {
    const ended = graft(dir, ['logits', '--model', make(), '--ids', 'ids.json', '--out', 'o']);
    assertRefused(ended, 1, sentence);
    assert.ok(!existsSync(join(dir, 'o')), 'nothing was written');
    rmSync(join(dir, 'model'), { recursive: true, force: true });
  });
}

test('weights that the memory cannot hold are refused before they are read', () => {
  // A terabyte of float16 numbers that takes no disk: the file is a hole.
  const info = { dtype: 'F16', shape: [2 ** 34, 32], data_offsets: [0, 2 ** 40] };
  const json = Buffer.from(JSON.stringify({ 'model.embed_tokens.weight': info }).padEnd(128));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(128n);
  const model = weights(Buffer.concat([size, json]));
  truncateSync(join(dir, model, 'model.safetensors'), 136 + 2 ** 40);
  const ended = graft(dir, ['logits', '--model', model, '--quantize', 'none', '--ids', 'ids.json', '--out', 'o']);
  assertRefused(ended, 1, /the weights take 2199\.0 GB with quantize: none, and [\d.]+ GB of memory are free/);
});

test('every case was looked at', () => assert.equal(cases.length, 26));

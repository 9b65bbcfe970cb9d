import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { commit, hub } from '../../test/samples/hub.ts';
import { temporary } from '../../test/samples/io.ts';
import { GraftError } from '../base/index.ts';
import { type DownloadProgress, resolveDataset, resolveModel } from './index.ts';

const weights = Buffer.from(Array.from({ length: 3_000_000 }, (_, i) => (i * 7) & 255));
const small = {
  'config.json': '{"a": 1}',
  'tokenizer.json': '{}',
  'vocab.txt': '[PAD]',
  'preprocessor_config.json': '{}',
  'modules.json': '[]',
  '1_Pooling/config.json': '{"b": 2}',
  LICENSE: 'Apache',
  'README.md': '---\nlicense: apache-2.0\n---',
  'pytorch_model.bin': 'no',
};
const repository = (): Record<string, Buffer> => ({
  ...Object.fromEntries(Object.entries(small).map(([name, text]) => [name, Buffer.from(text)])),
  'model.safetensors.index.json': Buffer.from('{"weight_map": {}}'),
  'model-00001-of-00002.safetensors': weights,
  'model-00002-of-00002.safetensors': Buffer.from('second'),
  'model.fp16.safetensors': Buffer.from('no'),
  'q/m-00001-of-00002.gguf': Buffer.from('GGUF1'),
  'q/m-00002-of-00002.gguf': Buffer.from('GGUF2'),
  'whole.gguf': Buffer.from('GGUF'),
});

/** A cache of its own, and none of the machine's settings. */
function cache(): ReturnType<typeof temporary> {
  const dir = temporary();
  process.env.GRAFT_CACHE = dir.path;
  for (const name of ['HF_TOKEN', 'HF_ENDPOINT', 'HF_HUB_OFFLINE']) delete process.env[name];
  return dir;
}

const refuses = (promise: Promise<unknown>, kind: string, message: RegExp) =>
  assert.rejects(promise, (error) => {
    assert(error instanceof GraftError, String(error));
    assert.match(error.message, message);
    assert.equal(error.kind, kind);
    return true;
  });

const home = (dir: { path: string }) => join(dir.path, 'hub', 'org--name', commit);

describe('resolveModel', () => {
  it('takes what is on disk as it is, and says what is neither a path nor a hub id', async () => {
    using dir = cache();
    assert.equal(await resolveModel(dir.path), dir.path);
    const file = dir.put('m.gguf', '');
    assert.equal(await resolveModel(file), file);
    await refuses(resolveModel(dir.put('m.bin', '')), 'usage', /m\.bin: This file is not a model/);
    for (const spec of ['./nope', 'nope', '/no/such/dir', 'nope.gguf', 'a/../b', 'a/b/../c.gguf', 'org/name/file.bin'])
      await refuses(
        resolveModel(spec),
        'usage',
        /The model was not found: there is no such directory or \.gguf file, and this is not a hub id.*org\/name@revision/,
      );
  });

  it('fetches a directory: what it needs, checked, with progress; then needs no network', async () => {
    using dir = cache();
    let path: string;
    let gone: string;
    const seen: DownloadProgress[] = [];
    {
      await using server = await hub(repository());
      gone = server.endpoint;
      path = await resolveModel('org/name', { endpoint: server.endpoint, progress: (event) => seen.push(event) });
      assert.equal(path, home(dir));
      const expected = [
        '1_Pooling',
        'LICENSE',
        'README.md',
        'config.json',
        'model-00001-of-00002.safetensors',
        'model-00002-of-00002.safetensors',
        'model.safetensors.index.json',
        'modules.json',
        'preprocessor_config.json',
        'tokenizer.json',
        'vocab.txt',
      ];
      assert.deepEqual(readdirSync(path).sort(), ['.complete', ...expected].sort());
      assert.equal(readFileSync(join(path, '1_Pooling', 'config.json'), 'utf8'), '{"b": 2}');
      assert(readFileSync(join(path, 'model-00001-of-00002.safetensors')).equals(weights));
      const { received, total } = seen.at(-1)!;
      assert.equal(received, total);
      assert(total > weights.byteLength && seen.every((event, i) => event.received >= (seen[i - 1]?.received ?? 0)));
      const before = server.requests.length;
      assert.equal(await resolveModel('org/name', { endpoint: server.endpoint }), path);
      assert.equal(server.requests.length, before, 'a complete copy asks nothing');
      await resolveModel('org/name', { endpoint: server.endpoint, refresh: true });
      assert(
        server.requests.length > before &&
          !server.requests.slice(before).some((request) => request.includes('/resolve/')),
      );
    }
    process.env.HF_ENDPOINT = gone;
    assert.equal(await resolveModel('org/name'), path);
    assert.equal(await resolveModel(`org/name@${commit}`), path);
    await refuses(
      resolveModel('org/name@v1'),
      'environment',
      /^org\/name: http:\/\/127\.0\.0\.1:\d+ could not be reached: [A-Z_]+\. (Connect to the network|Set NODE_USE)/,
    );
    process.env.HF_HUB_OFFLINE = '1';
    await refuses(resolveModel('org/name@v1'), 'environment', /HF_HUB_OFFLINE turns the network off/);
  });

  it('fetches one GGUF file of a revision, or all its shards', async () => {
    using dir = cache();
    await using server = await hub(repository());
    const { endpoint } = server;
    const whole = await resolveModel('org/name@v1/whole.gguf', { endpoint });
    assert.equal(readFileSync(whole, 'utf8'), 'GGUF');
    const first = await resolveModel('org/name/q/m-00001-of-00002.gguf', { endpoint });
    assert.deepEqual(readdirSync(join(first, '..')), ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']);
    assert(!existsSync(join(home(dir), 'config.json')));
    await refuses(
      resolveModel('org/name/none.gguf', { endpoint }),
      'usage',
      /no file none\.gguf. Its GGUF files: q\/m-00001/,
    );
  });

  it('says which repositories have no weights for it', async () => {
    using _dir = cache();
    await using server = await hub({ 'config.json': Buffer.from('{}'), 'm.gguf': Buffer.from('GGUF') });
    await refuses(
      resolveModel('org/name', { endpoint: server.endpoint }),
      'input',
      /no weights in safetensors or pytorch_model\.bin. Choose one of its GGUF files, such as org\/name\/m\.gguf/,
    );
  });

  it('refuses a family or a quantisation that is not read before it fetches weights', async () => {
    const configs = [
      [{ model_type: 'gemma2' }, /config\.json: model_type 'gemma2' is not supported\. Supported are llama/],
      [
        { model_type: 'llama', quantization_config: { quant_method: 'bitsandbytes', load_in_4bit: true } },
        /quantised by bitsandbytes, which Graft does not read\. Name the model that it was made from/,
      ],
      [{ model_type: 'llama', quantization_config: { load_in_8bit: true } }, /quantised by bitsandbytes/],
      [{ model_type: 'llama', quantization_config: { quant_method: 'gptq' } }, /quantised by gptq/],
    ] as const;
    for (const [config, why] of configs) {
      using _dir = cache();
      const files = { 'a.json': '{}', 'config.json': JSON.stringify(config), 'tokenizer.json': '{}' };
      const buffers = Object.entries(files).map(([name, text]) => [name, Buffer.from(text)]);
      await using server = await hub({ ...Object.fromEntries(buffers), 'model.safetensors': weights });
      await refuses(resolveModel('org/name', { endpoint: server.endpoint }), 'input', why);
      assert.equal(server.requests.filter((path) => path.includes('model.safetensors')).length, 0);
    }
    using _dir = cache();
    const config = { model_type: 'llama', quantization_config: { quant_method: 'compressed-tensors' } };
    const files = { 'config.json': Buffer.from(JSON.stringify(config)), 'pytorch_model.bin': Buffer.from('weights') };
    await using server = await hub(files);
    const dir = await resolveModel('org/name', { endpoint: server.endpoint });
    assert.deepEqual(readdirSync(dir).sort(), ['.complete', 'config.json', 'pytorch_model.bin']);
  });

  it('goes on where the connection broke, within a call and from one call to the next', async () => {
    using dir = cache();
    const ranges: string[] = [];
    let breaks = 1;
    await using server = await hub(repository(), (request, response, path) => {
      if (!path.includes('model-00001') || request.headers.range === 'bytes=0-0') return false;
      const from = Number(/^bytes=(\d+)/.exec(request.headers.range ?? '')?.[1] ?? 0);
      ranges.push(request.headers.range ?? 'all');
      if (breaks-- <= 0) return false;
      response.writeHead(from > 0 ? 206 : 200, { 'content-length': weights.byteLength - from });
      response.write(weights.subarray(from, from + 1_000_000), () => setTimeout(() => response.destroy(), 100));
      return true;
    });
    mkdirSync(home(dir), { recursive: true });
    writeFileSync(join(home(dir), 'model-00001-of-00002.safetensors.part'), weights.subarray(0, 500_000));
    const path = await resolveModel('org/name', { endpoint: server.endpoint });
    assert(readFileSync(join(path, 'model-00001-of-00002.safetensors')).equals(weights));
    assert.equal(ranges.length, 2);
    assert.equal(ranges[0], 'bytes=500000-2999999');
    assert(Number(/\d+/.exec(ranges[1]!)) > 500_000, ranges[1]);
    assert(!readdirSync(path).some((name) => name.endsWith('.part')));
  });

  it('refuses what does not have the hash, and keeps nothing of it', async () => {
    using dir = cache();
    await using server = await hub(repository(), (request, response, path) => {
      if (!path.includes('model-00001') || request.headers.range === 'bytes=0-0') return false;
      const wrong = Buffer.from(weights);
      wrong[77] = 1;
      response.writeHead(200, { 'content-length': wrong.byteLength }).end(wrong);
      return true;
    });
    await refuses(
      resolveModel('org/name', { endpoint: server.endpoint }),
      'input',
      /org\/name\/model-00001.*has the SHA-256 hash \w{64} instead of \w{64}. Run the command again/,
    );
    assert(!readdirSync(home(dir)).some((name) => name.startsWith('model-00001')));
    assert(existsSync(join(home(dir), 'config.json')), 'good files stay for the next time');
  });

  it('gives up after some tries when nothing arrives, and says so once', async () => {
    using _dir = cache();
    let asked = 0;
    await using server = await hub(repository(), (_request, response, path) => {
      if (!path.includes('/resolve/')) return false;
      asked++;
      response.writeHead(503).end('busy');
      return true;
    });
    await refuses(
      resolveModel('org/name', { endpoint: server.endpoint }),
      'environment',
      /^org\/name: The hub answered with status 503. Try again later\.$/,
    );
    assert.equal(asked, 4);
  });

  it('sends HF_TOKEN, and explains refusals', async () => {
    using _dir = cache();
    let sent: string | undefined;
    let status = 401;
    await using server = await hub(repository(), (request, response) => {
      sent = request.headers.authorization;
      response.writeHead(status, { 'content-type': 'application/json' }).end('{"error": "no"}');
      return true;
    });
    const ask = () => resolveModel('org/name', { endpoint: server.endpoint });
    await refuses(
      ask(),
      'environment',
      /private, gated, or does not exist. Check the name, accept its terms at http.*\/org\/name and set HF_TOKEN/,
    );
    assert.equal(sent, undefined);
    process.env.HF_TOKEN = 'hf_secret';
    status = 403;
    await refuses(ask(), 'environment', /HF_TOKEN has no access to the model/);
    assert.equal(sent, 'Bearer hf_secret');
    status = 404;
    await refuses(ask(), 'environment', /model, revision or file was not found/);
    status = 429;
    await refuses(ask(), 'environment', /rate limit/);
    process.env.HF_TOKEN = 'secret';
    await refuses(ask(), 'usage', /does not start with hf_/);
  });

  it('does not take a web page or a fault of the caller for the network', async () => {
    using _dir = cache();
    await using page = await hub(repository(), (_request, response) => Boolean(response.end('<html>')));
    await refuses(
      resolveModel('org/name', { endpoint: page.endpoint }),
      'environment',
      /did not answer as a Hugging Face hub does: .*Check HF_ENDPOINT/,
    );
    await using server = await hub(repository());
    const progress = () => {
      throw new TypeError('mine');
    };
    await assert.rejects(resolveModel('org/name', { endpoint: server.endpoint, progress }), /^TypeError: mine$/);
  });

  it('lets two at once fetch the same model', async () => {
    using _dir = cache();
    await using server = await hub(repository());
    const both = await Promise.all([1, 2].map(() => resolveModel('org/name', { endpoint: server.endpoint })));
    assert.equal(both[0], both[1]);
    const fetched = server.requests.filter((path) => path.includes('/resolve/'));
    assert.equal(fetched.length, 2 * new Set(fetched).size, 'each file once: its size, its contents');
  });
});

describe('resolveDataset', () => {
  const extensions = ['.jsonl', '.parquet'];
  const dataset = (files: Record<string, string>) =>
    hub(
      Object.fromEntries(Object.entries(files).map(([name, text]) => [name, Buffer.from(text)])),
      () => false,
      'dataset',
    );
  const read = (files: readonly string[]) => files.map((file) => readFileSync(file, 'utf8'));

  it('takes the training split, or the files that are named, and then needs no network', async () => {
    using _dir = cache();
    const notes: string[] = [];
    const note = (text: string) => notes.push(text);
    let gone = '';
    {
      await using server = await dataset({
        'README.md': 'no',
        'data/train-00000-of-00002.parquet': 'first',
        'data/train-00001-of-00002.parquet': 'second',
        'data/test-00000-of-00001.parquet': 'test',
      });
      const { endpoint } = server;
      gone = endpoint;
      assert.deepEqual(read(await resolveDataset('hub:org/name', extensions, note, { endpoint })), ['first', 'second']);
      assert.match(notes[0]!, /of its files, these are read: data\/train-00000\S+, data\/train-00001\S+$/);
      const test = await resolveDataset('hub:org/name/data/test-*', extensions, note, { endpoint });
      assert.deepEqual(read(test), ['test']);
      assert.equal(server.requests.filter((path) => path.includes('README')).length, 0);
      await refuses(
        resolveDataset('hub:org/name/data/dev-*', extensions, note, { endpoint }),
        'usage',
        /no such files of rows. It has data\/test-00000-of-00001\.parquet/,
      );
    }
    assert.equal((await resolveDataset('hub:org/name', extensions, note, { endpoint: gone })).length, 2);
    assert.deepEqual([notes.length, notes.at(-1)], [3, notes[0]], 'what is read of it is told again');
  });

  it('names the choices of a data set of several configurations, and refuses what is no name', async () => {
    using _dir = cache();
    await using server = await dataset({ 'en/train.jsonl': 'a', 'de/train.jsonl': 'b' });
    const { endpoint } = server;
    const note = () => {};
    await refuses(
      resolveDataset('hub:org/name', extensions, note, { endpoint }),
      'usage',
      /several splits or configurations. Name its files, as hub:org\/name\/PATTERN; it has de\/, en\//,
    );
    assert.deepEqual(read(await resolveDataset('hub:org/name/de/*', extensions, note, { endpoint })), ['b']);
    for (const spec of ['hub:name', 'hub:org/../name', 'hub:'])
      await refuses(resolveDataset(spec, extensions, note, { endpoint }), 'usage', /not the name of a data set/);
  });
});

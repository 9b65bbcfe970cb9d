/** Servers that start, change their adapters while requests run, refuse what is too much, and end. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { packageRoot } from '../../src/base/index.ts';
import { serve } from '../../src/serve/index.ts';
import { Session } from '../../src/session/index.ts';
import { greeting } from '../samples/served.ts';
import { eventsOf, requests, runningServer } from './running.ts';

const asked: string[] = [];
const { server, model, adapters, dir, lines, get, post } = await runningServer(['greeter', 'prefix'], {
  maxQueue: 4,
  maxRunning: 2,
  resolveAdapter: (name) => {
    asked.push(name);
    return name === 'found' ? join(dir, 'runs', 'greeter', 'adapter') : undefined;
  },
});
const messages = [{ role: 'user', content: 'Hello' }];
const greet = { model: 'greeter', messages, temperature: 0, max_tokens: 40 };
const textOf = async (name: string) => {
  const { body } = await post('/v1/chat/completions', { ...greet, model: name });
  return body.choices?.[0].message.content ?? body.error.code;
};
/** Waits until `holds`, for three seconds at most. */
async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 150; i++) {
    if (await holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.fail(what);
}
const key = 'secret-0123456789abcdef';

test('a folder: adapters come, are replaced and go while requests run', async () => {
  assert.equal(await textOf('late'), 'model_not_found');
  cpSync(join(adapters, 'greeter'), join(adapters, 'late'), { recursive: true });
  await until('the new adapter is served', () => server.adapters.includes('late'));
  assert.equal(await textOf('late'), greeting);
  const before = await textOf('prefix');
  assert.notEqual(before, greeting);
  // Replaced at once, as a program that writes adapters does: the old one is moved away, the new one into its place.
  const running = post('/v1/chat/completions', { ...greet, model: 'prefix', max_tokens: 300 });
  renameSync(join(adapters, 'prefix'), join(dir, 'old'));
  cpSync(join(adapters, 'greeter'), join(adapters, '.prefix'), { recursive: true });
  renameSync(join(adapters, '.prefix'), join(adapters, 'prefix'));
  await until('the adapter is replaced', async () => (await textOf('prefix')) === greeting);
  assert.ok((await running).body.choices[0].message.content.startsWith(before.slice(0, 10)), 'it ends as it began');
  rmSync(join(adapters, 'late'), { recursive: true });
  await until('the adapter is gone', () => !server.adapters.includes('late'));
  assert.equal(await textOf('late'), 'model_not_found');
  const broken = join(adapters, 'broken');
  mkdirSync(broken);
  writeFileSync(join(broken, 'adapter_config.json'), '{"peft_type": "LORA", ');
  await until('the broken one is named', () => lines.some((line) => line.includes("'broken' is not served")));
  assert.ok(!server.adapters.includes('broken'));
  rmSync(broken, { recursive: true });
});

test('adapters are loaded, replaced and unloaded by requests, as at vLLM', async () => {
  const load = (name: string, path: string, more = {}) =>
    post('/v1/load_lora_adapter', { lora_name: name, lora_path: path, ...more });
  const loaded = await load('mine', 'greeter');
  assert.deepEqual([loaded.status, loaded.text], [200, "Success: LoRA adapter 'mine' added successfully"]);
  assert.equal(await textOf('mine'), greeting);
  assert.deepEqual((await load('mine', 'greeter')).body.error.code, 'adapter_exists');
  assert.equal((await load('mine', 'greeter', { load_inplace: true })).status, 200);
  const gone = await post('/v1/unload_lora_adapter', { lora_name: 'mine' });
  assert.deepEqual([gone.status, gone.text], [200, "Success: LoRA adapter 'mine' removed successfully"]);
  assert.equal((await post('/v1/unload_lora_adapter', { lora_name: 'mine' })).status, 404);
  assert.equal(await textOf('mine'), 'model_not_found');
});

test('a pinned adapter is loaded at the start and stays; others leave memory when it is needed', async () => {
  const resident = async (pins: readonly string[]) => {
    const said: string[] = [];
    const options = { model, adapters, port: 0, adapterMemory: 1, pins, log: (line: string) => said.push(line) };
    await using small = await serve(options);
    const { get, post } = requests(small.url);
    const count = async () => Number(/^graft_adapters_resident (\d+)/m.exec((await get('/metrics')).text)![1]);
    const before = await count();
    assert.equal((await post('/v1/chat/completions', { ...greet, model: 'prefix' })).status, 200);
    await until('what is not pinned leaves', async () => (await count()) === before);
    assert.equal(await post('/v1/chat/completions', greet).then(({ status }) => status), 200);
    return { before, said };
  };
  assert.deepEqual(await resident([]), { before: 0, said: [] });
  const { before, said } = await resident(['greeter', 'absent']);
  assert.equal(before, 1);
  assert.match(said.join(), /'absent' is not there/);
});

test('an unknown name is asked of the hook, once it is found no more', async () => {
  asked.length = 0;
  assert.equal(await textOf('nobody'), 'model_not_found');
  assert.deepEqual(await Promise.all([textOf('found'), textOf('found')]), [greeting, greeting]);
  assert.equal(await textOf('found'), greeting);
  assert.deepEqual(asked, ['nobody', 'found']);
  assert.ok((await get('/v1/models')).body.data.some(({ id }: { id: string }) => id === 'found'));
});

test('a full queue is answered with 429 and Retry-After, and clients that leave make room', async () => {
  const leave = new AbortController();
  const long = { model: 'greeter', prompt: 'one', max_tokens: 1900, logit_bias: { 5: 100 } };
  const begin = () =>
    fetch(`${server.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(long),
      signal: leave.signal,
    }).catch((error: Error) => error.name);
  const metric = async (name: string) =>
    Number(new RegExp(`^${name} (\\d+)`, 'm').exec((await get('/metrics')).text)![1]);
  const answers = [begin(), begin()];
  await until('two run', async () => (await metric('graft_running')) === 2);
  for (let i = 0; i < 4; i++) answers.push(begin());
  await until('the queue is full', async () => (await metric('graft_queue_length')) === 4);
  const refused = await post('/v1/completions', long);
  assert.deepEqual(
    [refused.status, refused.body.error.type, refused.headers.get('retry-after')],
    [429, 'rate_limit_error', '1'],
  );
  leave.abort();
  assert.deepEqual(await Promise.all(answers), Array(6).fill('AbortError'));
  await until(
    'nothing runs',
    async () => (await metric('graft_running')) === 0 && (await metric('graft_queue_length')) === 0,
  );
  assert.equal(await textOf('greeter'), greeting);
});

test('keys: required off this machine, compared whole, counted each', async () => {
  await assert.rejects(serve({ model, host: '0.0.0.0', port: 0 }), {
    kind: 'usage',
    place: 'host',
    message: /API key/,
  });
  await assert.rejects(serve({ model, port: 0, apiKeys: ['short'] }), { kind: 'usage', place: 'apiKeys' });
  await assert.rejects(serve({ model, port: 0, adapter: 'x' } as object as Parameters<typeof serve>[0]), {
    kind: 'usage',
  });
  const limits = { requestsPerMinute: 3 };
  await using guarded = await serve({
    model,
    host: '0.0.0.0',
    port: 0,
    apiKeys: [key, 'other-0123456789abcdef'],
    limits,
    log: () => {},
  });
  const url = `http://127.0.0.1:${guarded.port}`;
  const ask = async (headers: Record<string, string>, path = '/v1/models') =>
    (await requests(url, headers).get(path)).status;
  for (const wrong of ['', 'Bearer ', `Bearer ${key}x`, `Bearer ${key.slice(1)}`, `Basic ${key}`, key])
    assert.equal(await ask({ authorization: wrong }), 401, wrong);
  assert.equal(await ask({}, '/metrics'), 401);
  assert.equal(await ask({}, '/health'), 200);
  const own = { authorization: `Bearer ${key}` };
  assert.deepEqual([await ask(own), await ask(own), await ask(own), await ask(own)], [200, 200, 200, 429]);
  assert.equal(
    await ask({ authorization: 'Bearer other-0123456789abcdef' }),
    200,
    'another key has an allowance of its own',
  );
});

test('without keys, a page of another site cannot ask through a name that leads here', async () => {
  const { request } = await import('node:http');
  const status = (host: string) =>
    new Promise<number>((resolve) => {
      request(`${server.url}/v1/models`, { headers: { host } }, (response) =>
        resolve(response.resume().statusCode!),
      ).end();
    });
  assert.equal(await status('evil.example'), 403);
  assert.equal(await status(`localhost:${server.port}`), 200);
});

test('closing lets answers end, and cuts with the reason what takes too long', async () => {
  const begin = () => serve({ model, adapters, port: 0, log: () => {} });
  const body = { model: 'tiny', prompt: 'one', max_tokens: 1900, logit_bias: { 5: 100 } };
  const patient = await begin();
  const short = requests(patient.url).post('/v1/completions', { ...body, max_tokens: 60 });
  await new Promise((resolve) => setTimeout(resolve, 30));
  await patient.close({ drainSeconds: 30 });
  assert.equal((await short).body.usage.completion_tokens, 60);

  const hasty = await begin();
  const whole = requests(hasty.url).post('/v1/completions', body);
  const stream = requests(hasty.url).post('/v1/completions', { ...body, stream: true });
  const steps = async () => Number(/^graft_steps (\d+)/m.exec((await requests(hasty.url).get('/metrics')).text)![1]);
  await until('answers run', async () => (await steps()) > 20);
  await hasty.close({ drainSeconds: 0 });
  assert.deepEqual([(await whole).status, (await whole).body.error.code], [503, 'shutting_down']);
  const events = eventsOf((await stream).text);
  assert.ok(events.length > 2);
  assert.equal(JSON.parse(events.at(-1)!).error.code, 'shutting_down');
  await assert.rejects(requests(hasty.url).get('/health'));
});

/** Starts the command line; its output grows while it runs. */
function started(...args: readonly string[]) {
  const child = spawn(process.execPath, [join(packageRoot, 'bin', 'graft.js'), ...args]);
  const text = { out: '', err: '' };
  child.stdout.setEncoding('utf8').on('data', (piece: string) => (text.out += piece));
  child.stderr.setEncoding('utf8').on('data', (piece: string) => (text.err += piece));
  return { child, text, exited: new Promise<number | null>((resolve) => child.on('close', resolve)) };
}

test('graft bench serve: one JSON document', async () => {
  const options = ['--rate', '15', '--seconds', '2', '--prompt-words', '6', '--max-tokens', '4', '--json'];
  const { text, exited } = started('bench', 'serve', '--url', server.url, ...options);
  assert.equal(await exited, 0, text.err);
  const result = JSON.parse(text.out);
  assert.ok(
    result.requests > 10 &&
      result.completed + Object.values<number>(result.failed).reduce((a, b) => a + b, 0) === result.requests,
  );
  const { p50, p95, p99, max } = result.time_to_first_token;
  assert.ok(0 < p50 && p50 <= p95 && p95 <= p99 && p99 <= max && result.time_between_tokens.p50 > 0, text.out);
  assert.ok(result.models >= 2 && result.new_tokens_per_s > 0, text.out);
});

test('graft serve: a line with the URL, answers, and exit 0 after SIGTERM', async () => {
  const args = ['--model', model, '--adapters', adapters, '--port', '0', '--json', '--drain-seconds', '20'];
  const { child, text, exited } = started('serve', ...args);
  for (let i = 0; i < 500 && !text.out.includes('\n') && child.exitCode === null; i++)
    await new Promise((resolve) => setTimeout(resolve, 50));
  assert.ok(text.out.includes('\n'), text.err);
  const { type, url, model: base, adapters: names } = JSON.parse(text.out);
  assert.deepEqual([type, base, names], ['listening', 'tiny', readdirSync(adapters).sort()]);
  const long = { model: 'tiny', prompt: 'one', max_tokens: 500, logit_bias: { 5: 100 } };
  const answer = requests(url).post('/v1/completions', long);
  await new Promise((resolve) => setTimeout(resolve, 100));
  child.kill('SIGTERM');
  assert.equal((await answer).body.usage.completion_tokens, 500);
  assert.equal(await exited, 0, text.err);
  assert.doesNotMatch(text.err, /Error|\n\s+at /);
});

test('what of a model is not as its files have it is said where it is loaded, and where it is served', async () => {
  const copy = join(dir, 'still-named');
  cpSync(model, copy, { recursive: true });
  const file = join(copy, 'config.json');
  const config = JSON.parse(readFileSync(file, 'utf8')) as object;
  const quantised = { quantization_config: { quant_method: 'bitsandbytes', load_in_4bit: true } };
  writeFileSync(file, JSON.stringify({ ...config, ...quantised }));
  await using session = new Session();
  const notesOf = async (path: string) => {
    await using loaded = await session.load(path);
    return loaded.info.notes;
  };
  assert.deepEqual(await notesOf(model), []);
  const [note, ...others] = await notesOf(copy);
  assert.match(note!, /names bitsandbytes, and the weights are not quantised/);
  assert.deepEqual(others, []);
  const said: string[] = [];
  await using _ = await serve({ model: copy, port: 0, log: (line) => said.push(line) });
  assert.ok(said.includes(`note: ${note}`), said.join('\n'));
});

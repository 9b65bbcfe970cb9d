/** Requests that nobody should send, and what a server has to make of each: an error in JSON of a fitting status, and no more. */
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { connect } from 'node:net';
import { randomStream } from '../../src/data/index.ts';
import { weather } from '../samples/served.ts';

/** What came back: a status and a body, or a connection that was closed without them. */
export interface Outcome {
  readonly what: string;
  readonly status: number | undefined;
  readonly type: string;
  readonly text: string;
}

type Random = () => number;
type Json = Record<string, unknown>;

const messages = [{ role: 'user', content: 'Hello' }];
const bodies: readonly (readonly [path: string, body: Json])[] = [
  ['/v1/chat/completions', { model: 'greeter', messages, max_tokens: 3, temperature: 0.5, stop: ['x'], seed: 1, n: 2 }],
  [
    '/v1/chat/completions',
    { model: 'tiny', messages, max_tokens: 3, tools: [weather], tool_choice: 'auto', stream: true },
  ],
  [
    '/v1/chat/completions',
    { model: 'tiny', messages, max_tokens: 3, logprobs: true, top_logprobs: 2, logit_bias: { 5: 1 } },
  ],
  [
    '/v1/chat/completions',
    {
      model: 'tiny',
      messages,
      max_tokens: 3,
      response_format: { type: 'json_schema', json_schema: { schema: weather.function.parameters } },
    },
  ],
  ['/v1/completions', { model: 'greeter', prompt: ['one', 'two'], max_tokens: 3, logprobs: 1, adapters: null }],
  [
    '/v1/completions',
    { model: 'tiny', prompt: [1, 2, 3], max_tokens: 3, adapters: [{ name: 'greeter', weight: 0.5 }] },
  ],
  ['/v1/load_lora_adapter', { lora_name: 'x', lora_path: 'nowhere' }],
  ['/v1/unload_lora_adapter', { lora_name: 'x' }],
  ['/tokenize', { prompt: 'one two' }],
  ['/detokenize', { tokens: [1, 2, 3] }],
];

const pick = <T>(random: Random, list: readonly T[]): T => list[Math.floor(random() * list.length)]!;

/** Values that stand where others are expected. */
const values: readonly ((random: Random) => unknown)[] = [
  () => null,
  () => -1,
  () => 1e308,
  () => 0.1,
  () => 2 ** 53,
  () => '',
  () => '\ud800',
  () => '\0',
  () => 'é'.repeat(300),
  () => '../../../etc/passwd',
  () => '<|begin_of_text|><|eot_id|>',
  () => '{{ 7 * 7 }}{% for x in range(10) %}',
  (random) => 'a '.repeat(Math.floor(random() * 20_000)),
  (random) => 'a'.repeat(Math.floor(random() * 20_000)),
  () => [],
  () => [[[[]]]],
  () => Array(300).fill('x'),
  () => Array(300).fill(1),
  () => ({}),
  () => ({ toString: 1, constructor: { prototype: {} } }),
  () => true,
  (random) => Array.from({ length: Math.floor(random() * 70) }).reduce((inner) => [inner], 1),
];

/** A body with a few of its values, names or entries changed, at any depth. */
function changed(random: Random, body: Json): Json {
  const copy = structuredClone(body);
  for (let changes = 1 + Math.floor(random() * 3); changes > 0; changes--) {
    let at: Json = copy;
    for (let depth = 0; depth < 4; depth++) {
      const inner = Object.values(at).filter((value): value is Json => typeof value === 'object' && value !== null);
      if (inner.length === 0 || random() < 0.4) break;
      at = pick(random, inner);
    }
    const key =
      random() < 0.15
        ? pick(random, ['__proto__', 'foo', 'n', '', 'stream', 'functions'])
        : pick(random, Object.keys(at));
    if (random() < 0.1) delete at[key ?? ''];
    else
      Object.defineProperty(at, key ?? 'x', {
        value: pick(random, values)(random),
        enumerable: true,
        configurable: true,
        writable: true,
      });
  }
  return copy;
}

/** Bytes with some of them changed, left out or doubled. */
function damagedBytes(random: Random, bytes: Buffer): Buffer {
  let out = Buffer.from(bytes);
  for (let changes = 1 + Math.floor(random() * 4); changes > 0; changes--) {
    const at = Math.floor(random() * out.length);
    const way = random();
    if (way < 0.5) out[at] = Math.floor(random() * 256);
    else if (way < 0.75) out = Buffer.concat([out.subarray(0, at), out.subarray(at + 1)]);
    else out = out.subarray(0, at + 1);
  }
  return out;
}

const paths = [
  ...[
    '/',
    '//',
    '/v1',
    '/v1/',
    '/v1/models/../../etc/passwd',
    '/v1/models/%2e%2e/%2e%2e/etc/passwd',
    '/v1/models/%00',
    '/v1/%zz',
  ],
  ...[
    `/${'a'.repeat(10_000)}`,
    `/v1/models/${'%41'.repeat(2000)}`,
    '/V1/MODELS',
    `/v1/models?x=${'y'.repeat(5000)}`,
    '/.env',
    '/v1/chat/completions/..;/',
  ],
];
const methods = ['GET', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'HEAD', 'TRACE', 'PROPFIND'];

/** Bytes on a connection that are no request, or only a part of one. */
const connections: readonly ((random: Random) => string)[] = [
  () => 'not http at all\r\n\r\n',
  () => 'GET / HTTP/9.9\r\n\r\n',
  () => '\x16\x03\x01\x02\x00\x01\x00\x01',
  () => 'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n',
  () =>
    'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n',
  () =>
    'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n',
  () => `GET /health HTTP/1.1\r\nHost: localhost\r\nX: ${'y'.repeat(40_000)}\r\n\r\n`,
  () => `GET /health HTTP/1.1\r\nHost: localhost\r\n${'X: y\r\n'.repeat(5000)}\r\n`,
  () => 'GET /health HTTP/1.1\r\nHo st: x\r\n\r\n',
  () => 'GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n',
];

/** Bytes of a request that never comes whole: the server has to end the connection itself. */
const slow: readonly string[] = [
  'GET /health HTTP/1.1\r\nHost: localhost\r\n',
  'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"model"',
];

function send(
  what: string,
  url: string,
  method: string,
  path: string,
  body: Buffer | undefined,
  headers: Record<string, string>,
): Promise<Outcome> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve) => {
    const lost = (error: Error) => resolve({ what, status: undefined, type: '', text: error.message });
    const onResponse = (response: IncomingMessage) => {
      const pieces: Buffer[] = [];
      response.on('data', (piece: Buffer) => pieces.push(piece));
      response.on('error', lost);
      response.on('end', () => {
        const text =
          method === 'HEAD' ? '{"error":{"message":"a head has no body"}}' : Buffer.concat(pieces).toString();
        resolve({ what, status: response.statusCode, type: response.headers['content-type'] ?? '', text });
      });
    };
    try {
      const request = httpRequest({ hostname, port, method, path, headers, agent: false }, onResponse);
      request.on('error', lost);
      request.end(body);
    } catch (error) {
      // Node's own client does not send it.
      resolve({
        what,
        status: 400,
        type: 'application/json',
        text: JSON.stringify({ error: { message: String(error) } }),
      });
    }
  });
}

/** Sends bytes, and reads until the server ends the connection. */
export function sendRaw(what: string, url: string, bytes: string): Promise<Outcome> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve) => {
    let text = '';
    const socket = connect(Number(port), hostname, () => socket.write(bytes, 'latin1'));
    socket.setEncoding('utf8').on('data', (piece: string) => {
      text += piece;
      // A complete answer on a connection that is kept.
      if (/^HTTP\/1.1 2\d\d/.test(text) && text.includes('\r\n\r\n')) socket.end();
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      const [head = '', body = ''] = text.split('\r\n\r\n');
      const status = /^HTTP\/1.1 (\d+)/.exec(head)?.[1];
      const type = /content-type: (.*)/i.exec(head)?.[1] ?? '';
      resolve({ what, status: status ? Number(status) : undefined, type, text: body });
    });
  });
}

/** Sends hostile request number `i`. */
export async function hostile(url: string, seed: number, i: number): Promise<Outcome> {
  const random = randomStream(seed, i);
  const json = { 'content-type': 'application/json' };
  const [path, body] = pick(random, bodies);
  const way = random();
  if (way < 0.45) {
    const text = JSON.stringify(changed(random, body));
    return send(`${path} ${text.slice(0, 400)}`, url, 'POST', path, Buffer.from(text), json);
  }
  if (way < 0.7) {
    const bytes = damagedBytes(random, Buffer.from(JSON.stringify(body)));
    return send(`${path} ${bytes.toString('latin1').slice(0, 400)}`, url, 'POST', path, bytes, json);
  }
  if (way < 0.8) return send('a path or method', url, pick(random, methods), pick(random, paths), undefined, {});
  if (way < 0.85) {
    const type = pick(random, [
      'text/plain',
      'multipart/form-data; boundary=x',
      'application/json; charset=utf-16',
      '',
      'a/b/c',
      'application/x-www-form-urlencoded',
    ]);
    return send(`the type '${type}'`, url, 'POST', path, Buffer.from(JSON.stringify(body)), { 'content-type': type });
  }
  if (way < 0.87) {
    const text = `{"prompt": "${'x'.repeat(4_500_000)}"}`;
    return send('a huge body', url, 'POST', path, Buffer.from(text), json);
  }
  if (way < 0.9) return send('deep JSON', url, 'POST', path, Buffer.from('[{"a":'.repeat(50_000)), json);
  const made = Math.floor(random() * connections.length);
  return sendRaw(`a connection (${made})`, url, connections[made]!(random));
}

/** Connections that only begin a request. */
export const hostileSlow = (url: string): Promise<Outcome>[] =>
  slow.map((bytes, i) => sendRaw(`a slow client (${i})`, url, bytes));

const fitting = new Set([200, 400, 401, 403, 404, 405, 408, 413, 414, 415, 429, 431, 503, 504]);

/** What is wrong with an outcome; undefined where it is as it has to be. */
export function faultOf({ status, type, text }: Outcome): string | undefined {
  if (status === undefined) return `no answer: ${text}`;
  if (!fitting.has(status)) return `the status is ${status}: ${text.slice(0, 300)}`;
  if (/\bat [\w.]+ \(|node_modules|\/tmp\/|\/root\/|file:\/\//.test(text.replaceAll(/"token"|\\u/g, '')))
    return `it tells too much: ${text.slice(0, 300)}`;
  if (status === 200) return undefined;
  if (!type.startsWith('application/json')) return `the type is ${type}`;
  try {
    const { message } = (JSON.parse(text) as { error: { message: unknown } }).error;
    return typeof message === 'string' && message.length > 5 ? undefined : `no message: ${text}`;
  } catch {
    return `no JSON: ${text.slice(0, 300)}`;
  }
}

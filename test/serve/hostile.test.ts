import assert from 'node:assert/strict';
import { connect } from 'node:net';
import test from 'node:test';
import { type LimitChoices, serve } from '../../src/serve/index.ts';
import { greeting } from '../samples/served.ts';
import { faultOf, hostile, hostileSlow } from './hostile.ts';
import { requests, runningServer } from './running.ts';

const limits = { headerSeconds: 1, bodySeconds: 2, answerSeconds: 3, schemaSeconds: 2, stallSeconds: 1 };
const { server, model, get, post, lines } = await runningServer(['greeter'], { limits });

test('400 hostile requests: each has an error in JSON that fits, and the server goes on as before', async (t) => {
  const counts = new Map<number | undefined, number>();
  for (let first = 0; first < 400; first += 20) {
    const outcomes = await Promise.all(Array.from({ length: 20 }, (_, i) => hostile(server.url, 1, first + i)));
    for (const outcome of outcomes) {
      const fault = faultOf(outcome);
      assert.equal(fault, undefined, `${outcome.what}: ${fault}\n${lines.join('\n')}`);
      counts.set(outcome.status, (counts.get(outcome.status) ?? 0) + 1);
    }
    assert.equal((await get('/health')).status, 200);
  }
  assert.ok(counts.get(400)! > 150 && counts.size >= 6, JSON.stringify([...counts]));
  const answer = await post('/v1/chat/completions', {
    model: 'greeter',
    messages: [{ role: 'user', content: 'Hello' }],
    temperature: 0,
  });
  assert.equal(answer.body.choices[0].message.content, greeting);
  t.diagnostic(`statuses: ${[...counts].map(([status, count]) => `${status}: ${count}`).join(', ')}`);
});

test('clients that never complete a request are answered with 408 and closed', async () => {
  for (const outcome of await Promise.all(hostileSlow(server.url))) {
    assert.equal(outcome.status, 408, `${outcome.what}: ${outcome.text}`);
    assert.equal(faultOf(outcome), undefined);
  }
});

/** Begins 64 answers of 121,600 tokens in all, and reads nothing until they have ended. @returns what is there to read then, when it is */
async function withoutReading(limits: LimitChoices): Promise<string> {
  await using patient = await serve({ model, port: 0, drainSeconds: 0, limits, log: () => {} });
  const socket = connect(patient.port, '127.0.0.1');
  const body = JSON.stringify({
    model: 'tiny',
    prompt: Array(8).fill('one'),
    n: 8,
    max_tokens: 1900,
    stream: true,
    logprobs: 20,
    logit_bias: { 5: 100 },
  });
  socket.write(
    `POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
  );
  socket.pause();
  const closed = new Promise<void>((resolve) => socket.on('close', () => resolve()));
  let read = '';
  socket.setEncoding('utf8').on('data', (text: string) => (read = (read + text).slice(-1000)));
  socket.pause();
  socket.on('error', () => {});
  const metrics = async () => (await requests(patient.url).get('/metrics')).text;
  for (
    let i = 0;
    !/^graft_answers_total\{model="tiny",reason="interrupted"\} [1-9]|^graft_running 0$/m.test(await metrics()) ||
    i < 10;
    i++
  ) {
    assert.ok(i < 400, 'the answers still run');
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  socket.resume();
  await closed;
  return read;
}

test('a client that reads nothing of its stream is cut', async () => {
  assert.doesNotMatch(await withoutReading({ stallSeconds: 1, unreadPieces: 1e6 }), /slow_client/);
  assert.match(await withoutReading({ unreadPieces: 64 }), /"code":"slow_client"/);
});

test('300 connections at a time that ask nothing leave the server well', async () => {
  const sockets = Array.from({ length: 300 }, () => connect(server.port, '127.0.0.1').on('error', () => {}));
  await Promise.all(sockets.map((socket) => new Promise((resolve) => socket.once('connect', resolve))));
  assert.equal((await get('/health')).status, 200);
  for (const socket of sockets) socket.destroy();
  assert.equal((await get('/health')).status, 200);
});

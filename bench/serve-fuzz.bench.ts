/**
 * 10,000 hostile requests and 1,000 connections against a server on a tiny model: every one is answered with an error in JSON of a
 * fitting status, nothing crashes, and the server answers as before.
 *   npm run proof:serve-fuzz [-- COUNT [SEED]]
 */
import { connect } from 'node:net';
import { join } from 'node:path';
import { serve } from '../src/serve/index.ts';
import { greeting, servedFolder } from '../test/samples/served.ts';
import { faultOf, hostile, hostileSlow, type Outcome } from '../test/serve/hostile.ts';
import { requests } from '../test/serve/running.ts';
import { report, workFolder } from './support.ts';

const [count = '10000', seed = '7'] = process.argv.slice(2);
const { model, adapters } = await servedFolder(join(workFolder(), 'served'), ['greeter']);
const limits = { headerSeconds: 2, bodySeconds: 4, answerSeconds: 3, requestsPerKey: 2000 };
const logged: string[] = [];
await using server = await serve({ model, adapters, port: 0, limits, log: (line) => logged.push(line) });
const { get, post } = requests(server.url);
const greets = async () => {
  const body = { model: 'greeter', messages: [{ role: 'user', content: 'Hello' }], temperature: 0 };
  return (await post('/v1/chat/completions', body)).body.choices?.[0].message.content === greeting;
};

const statuses: Record<string, number> = {};
const faults: string[] = [];
const take = (outcome: Outcome) => {
  statuses[outcome.status ?? 'none'] = (statuses[outcome.status ?? 'none'] ?? 0) + 1;
  const fault = faultOf(outcome);
  if (fault !== undefined) faults.push(`${outcome.what}: ${fault}`);
};
let [sick, wrong] = [0, (await greets()) ? 0 : 1];
const crowd = 25;
for (let first = 0; first < Number(count); first += crowd) {
  const slow = first % 2000 === 0 ? hostileSlow(server.url) : [];
  const outcomes = await Promise.all(
    Array.from({ length: crowd }, (_, i) => hostile(server.url, Number(seed), first + i)),
  );
  for (const outcome of [...outcomes, ...(await Promise.all(slow))]) take(outcome);
  if ((await get('/health')).status !== 200) sick++;
  if (first % 1000 === 0 && !(await greets())) wrong++;
}
const sockets = Array.from({ length: 1000 }, () => connect(server.port, '127.0.0.1').on('error', () => {}));
const connected = await Promise.all(
  sockets.map(
    (s) => new Promise<number>((resolve) => s.once('connect', () => resolve(1)).once('error', () => resolve(0))),
  ),
);
if ((await get('/health')).status !== 200) sick++;
for (const socket of sockets) socket.destroy();
if (!(await greets())) wrong++;
for (const fault of faults.slice(0, 20)) console.log(fault);
for (const line of logged.slice(0, 20)) console.log(`log: ${line}`);
report(
  'serve-fuzz',
  [
    { what: 'requests without a fitting error', got: faults.length, bar: 0, better: 'less' },
    { what: 'times that health was not well', got: sick, bar: 0, better: 'less' },
    { what: 'wrong answers to a right question', got: wrong, bar: 0, better: 'less' },
    { what: 'connections that were accepted', got: connected.reduce((a, b) => a + b), bar: 1000, better: 'more' },
    { what: 'requests sent', got: Object.values(statuses).reduce((a, b) => a + b), bar: Number(count), better: 'more' },
  ],
  { statuses },
);

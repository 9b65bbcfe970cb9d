/**
 * A service in one file: trains two adapters on rows in memory, measures them, then streams answers and predictions over HTTP.
 * A client that leaves stops its answer.
 */
import { createServer } from 'node:http';
import { json } from 'node:stream/consumers';
import { GraftError, type Message, type RowInput, Session } from 'graft-llm';

const [id, dir, port = '0'] = process.argv.slice(2);
if (!id || !dir) {
  console.error('usage: node tools/run.cjs examples/service.ts MODEL RUN_DIR [PORT]');
  process.exit(2);
}

const tickets = Array.from({ length: 48 }, (_, i) =>
  i % 2
    ? { id: `t${i}`, text: `the invoice ${i} is wrong`, label: 'billing' }
    : { id: `t${i}`, text: `page ${i} is slow`, label: 'web' },
);
const replies: RowInput[] = tickets.map(({ text, label }) => ({
  messages: [
    { role: 'user', content: text },
    { role: 'assistant', content: `Thank you. The ${label} team has your ticket.` },
  ],
}));

await using session = new Session();
const common = { model: id, method: { type: 'lora', target_modules: 'all-linear' } } as const;
const settings = { lr: 5e-3, epochs: 3 };
const answers = await session.train({ ...common, data: replies, train: settings, run: { dir: `${dir}/answers` } });
const teams = await session.train({
  ...{ ...common, task: 'sequence-classification', data: tickets, train: settings, run: { dir: `${dir}/teams` } },
});

await using model = await session.load(id, { adapters: { answers: answers.adapter, teams: teams.adapter } });
const { metrics } = await model.evaluate(tickets, { adapter: 'teams' });
console.log(metrics.map(({ name, value, count }) => `${name} ${value.toFixed(2)} of ${count}`).join(', '));

const server = createServer(async (request, response) => {
  const gone = new AbortController();
  response.on('close', () => gone.abort());
  try {
    const body = (await json(request)) as { messages?: Message[]; adapter?: string; rows?: RowInput[] };
    if (body.rows) {
      const { predictions } = await model.predict(body.rows, { adapter: 'teams', signal: gone.signal });
      response.end(JSON.stringify(predictions));
      return;
    }
    const answer = model.generate(body.messages ?? [], {
      adapter: body.adapter,
      maxNewTokens: 200,
      signal: gone.signal,
    });
    for await (const piece of answer) response.write(piece);
    response.end();
  } catch (error) {
    if (!gone.signal.aborted) response.writeHead(400).end(error instanceof GraftError ? error.message : 'bad request');
  }
});
server.listen(Number(port), () => console.log(`http://localhost:${(server.address() as { port: number }).port}`));
process.once('SIGTERM', () => server.close());
await new Promise((resolve) => server.on('close', resolve));

/**
 * A service in one file: it trains two adapters on rows in memory, measures one, and serves both on one base over HTTP.
 * POST {"messages": […], "adapter": "answers"} streams an answer, which stops when the client leaves; {"rows": […]} is predicted.
 */
import { createServer } from 'node:http';
import { json } from 'node:stream/consumers';
import { GraftError, type Message, type OneTaskRecipe, Session } from 'graft-llm';

const [id, dir, port = '0'] = process.argv.slice(2);
if (!id || !dir) {
  console.error('usage: node tools/run.cjs examples/service.ts MODEL RUN_DIR [PORT]');
  process.exit(2);
}

const tickets = Array.from({ length: 24 }, (_, i) => [
  { id: `bill-${i}`, text: `the invoice ${i} is wrong`, label: 'billing' },
  { id: `web-${i}`, text: `page ${i} is slow`, label: 'web' },
]).flat();
const conversations = tickets.map(({ text, label }) => {
  const answer = { role: 'assistant', content: `Thank you. The ${label} team has your ticket.` };
  return { messages: [{ role: 'user', content: text }, answer] };
});

await using session = new Session();
const train = async (name: string, task: Pick<OneTaskRecipe, 'task' | 'data'>) => {
  const base = { model: id, train: { lr: 5e-3 }, run: { dir: `${dir}/${name}` } };
  const { adapter } = await session.train({ ...base, ...task, method: { type: 'lora', target_modules: 'all-linear' } });
  return adapter;
};
const answers = await train('answers', { data: conversations });
const teams = await train('teams', { data: tickets, task: 'sequence-classification' });

await using model = await session.load(id, { adapters: { answers, teams } });
const { metrics } = await model.evaluate(tickets, { adapter: 'teams' });
for (const { name, value, count } of metrics) console.log(`${name} ${value.toFixed(2)} of ${count} tickets`);

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null;
const isMessage = (value: unknown): value is Message =>
  isRecord(value) && typeof value.role === 'string' && typeof value.content === 'string';

const server = createServer(async (request, response) => {
  const left = new AbortController();
  const { signal } = left;
  response.on('close', () => left.abort());
  try {
    const body = await json(request);
    const { rows, messages, adapter } = isRecord(body) ? body : {};
    if (Array.isArray(rows) && rows.every(isRecord)) {
      const { predictions } = await model.predict(rows, { adapter: 'teams', signal });
      response.end(JSON.stringify(predictions));
    } else if (Array.isArray(messages) && messages.every(isMessage)) {
      const settings = { maxNewTokens: 1000, signal, ...(typeof adapter === 'string' && { adapter }) };
      for await (const piece of model.generate(messages, settings)) response.write(piece);
      response.end();
    } else response.writeHead(400).end('expected messages or rows');
  } catch (error) {
    const { message } = GraftError.of(error);
    console.error(signal.aborted ? `a client left: ${message}` : message);
    if (response.headersSent)
      response.destroy(); // the client sees that the answer is incomplete
    else response.writeHead(400).end(message);
  }
});
server.listen(Number(port), () => console.log('listening:', server.address()));
process.once('SIGTERM', () => server.close());
await new Promise((resolve) => server.on('close', resolve));

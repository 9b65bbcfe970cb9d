/** A conversation: every line from the keyboard is a turn, and the answers are streamed. End it with Ctrl-D. */
import { createInterface } from 'node:readline';
import { type Message, Session } from 'graft-llm';

const [id, adapter] = process.argv.slice(2);
if (!id) {
  console.error('usage: node tools/run.cjs examples/chat.ts MODEL [ADAPTER_DIR]');
  process.exit(2);
}

await using session = new Session();
await using model = await session.load(id);
const messages: Message[] = [{ role: 'system', content: 'You are a helpful assistant.' }];
process.stderr.write('> ');
for await (const line of createInterface({ input: process.stdin })) {
  messages.push({ role: 'user', content: line });
  const answer = model.generate(messages, { adapter, maxNewTokens: 128, temperature: 0.7 });
  for await (const piece of answer) process.stdout.write(piece);
  messages.push({ role: 'assistant', content: (await answer).text });
  process.stdout.write('\n');
  process.stderr.write('> ');
}

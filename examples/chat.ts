/** A conversation: every line from the keyboard is a turn, and the answers are streamed. End it with Ctrl-D. */
import { createInterface } from 'node:readline';
import { type Message, Session } from 'graft';

const [model, adapter] = process.argv.slice(2);
if (!model) {
  console.error('usage: node tools/run.cjs examples/chat.ts MODEL [ADAPTER_DIR]');
  process.exit(2);
}

await using session = new Session();
const messages: Message[] = [{ role: 'system', content: 'You are a helpful assistant.' }];
process.stderr.write('> ');
for await (const line of createInterface({ input: process.stdin })) {
  messages.push({ role: 'user', content: line });
  // The model stays loaded between the turns.
  const { text } = await session.run(
    'generate',
    { model, prompt: messages, maxNewTokens: 128, temperature: 0.7, ...(adapter && { adapter }) },
    (event) => {
      if (event.type === 'text') process.stdout.write(event.text);
    },
  );
  messages.push({ role: 'assistant', content: text });
  process.stdout.write('\n');
  process.stderr.write('> ');
}

/** Serves a model and a folder of adapters over HTTP, asks each of its models once as a client does, and ends. */
import { serve } from 'graft-llm';

const [model, adapters, question = 'Who are you?'] = process.argv.slice(2);
if (!model || !adapters) {
  console.error('usage: node tools/run.cjs examples/serve.ts MODEL ADAPTERS_FOLDER [QUESTION]');
  process.exit(2);
}

await using server = await serve({ model, adapters, port: 0 });
console.log(`serving at ${server.url}/v1`);
for (const name of [server.base, ...server.adapters]) {
  const response = await fetch(`${server.url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      model: name,
      messages: [{ role: 'user', content: question }],
      max_tokens: 32,
      temperature: 0,
    }),
  });
  const { choices, usage } = (await response.json()) as {
    choices: { message: { content: string } }[];
    usage: { completion_tokens: number };
  };
  console.log(`${name}: ${choices[0]!.message.content} (${usage.completion_tokens} tokens)`);
}

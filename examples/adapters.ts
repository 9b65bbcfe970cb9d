/**
 * Several adapters on one base, switched while it is loaded: the base is in memory once, and a switch costs nothing. Shows
 * how likely each of two answers is under each adapter.
 */
import { loadAdapter, loadModel, resolveModel, scoreChoices, startEngine, tokenizerOf } from 'graft';

const [spec, ...dirs] = process.argv.slice(2);
if (!spec || dirs.length === 0) {
  console.error('usage: node tools/run.cjs examples/adapters.ts MODEL ADAPTER_DIR …');
  process.exit(2);
}

await startEngine();
const path = await resolveModel(spec);
const tokenizer = tokenizerOf(path);
using model = loadModel(path, { quantize: 'keep' });
const adapters = dirs.map((dir) => ({ dir, adapter: loadAdapter(model, dir) }));

const answers = [' yes', ' no'];
const prompt = Array.from(tokenizer.encode('Is the sea salty? Answer:'));
const choices = answers.map((answer) => Array.from(tokenizer.encode(answer, { addSpecialTokens: false })));

/** Only this adapter computes; undefined: the base as it is. */
function show(name: string, active: unknown) {
  const start = performance.now();
  for (const { adapter } of adapters) adapter.enabled = adapter === active;
  const milliseconds = performance.now() - start;
  const [scores] = scoreChoices(model, [prompt], choices);
  const shown = scores!.map((score, i) => `${answers[i]!.trim()} ${score.toFixed(5)}`);
  console.log(`${name}: ${shown.join(', ')} (switched in ${milliseconds.toFixed(2)} ms)`);
}

show('base', undefined);
for (const { dir, adapter } of adapters) show(dir, adapter);
show('base', undefined);

for (const { adapter } of adapters) adapter.detach(); // the base is as it was, bit for bit

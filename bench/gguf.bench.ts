/**
 * Files that Graft exports, in llama.cpp (npm node-llama-cpp, installed into the cache on the first run: about 100 MB).
 *   npm run proof:gguf -- [--model FILE.gguf|DIR] [--formats q4_0,q8_0 …] [--prompts 50] [--tokens 32] [--threads 2]
 * - models of every architecture and rotary scaling that GGUF has, tiny and with random weights, and the real model, in every format:
 *   whether llama.cpp loads the file without a warning, and how many greedily chosen tokens are Graft's on the same file, token by
 *   token after Graft's own. Reported beside it: rows that go on by themselves, where one other token changes all that follow.
 *   llama.cpp rounds the inputs of layers with packed weights to 8 bits, and keeps keys and values in float16. The same again with
 *   Graft's inputs rounded (activation: q8), and between two builds of llama.cpp, for processors with and without AVX-512: sums in
 *   another order move inputs across the boundary between two codes, so rows that go on by themselves part there too.
 * - LoRA as a GGUF file, applied by llama.cpp
 * - a model that was trained with the rounding of q4_0 to tell spam from ham, merged into a file: the answers of both programs
 * - ids of tokenizers on test/golden/tokenizer/corpus.jsonl
 * The last line is one JSON document.
 */
import { spawnSync } from 'node:child_process';
import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';
import { convertAdapter, loadAdapter, saveAdapter } from '../src/adapters/index.ts';
import { GraftError } from '../src/base/index.ts';
import { ChatTemplate, loadTokenizer, tokenizerIfAny, tokenizerOf } from '../src/data/index.ts';
import { currentEngine, startEngine } from '../src/engine/index.ts';
import { generate } from '../src/generate/index.ts';
import { attachMethods } from '../src/methods/index.ts';
import { type ExportFormat, formatsFor, loadModel, saveGguf } from '../src/models/index.ts';
import type { Model } from '../src/nn/index.ts';
import { type FormatName, ggufFormats, isBlockFormat } from '../src/quant/index.ts';
import { noGrad, ops, Tensor } from '../src/tensor/index.ts';
import { tinyModel } from '../test/samples/tiny.ts';
import { tokenizerJson, withAllMerges } from '../test/samples/tokenizers.ts';
import { golden } from '../test/support.ts';
import { chooseMails, mailQuestion, mailRow } from '../tools/fetch/emails.ts';
import { fetchMails, fetchSmolLM2, type Mail } from '../tools/fetch/fetch.ts';
import { llamaCppFolder, llamaCppVersion } from './llama-cpp.ts';
import { type Bar, graft, integers, report, round, workFolder } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    formats: { type: 'string', default: ggufFormats.join(',') },
    prompts: { type: 'string', default: '50' },
    tokens: { type: 'string', default: '32' },
    threads: { type: 'string', default: '2' },
    mails: { type: 'string', default: '200' },
  },
});
const real = args.model ?? fetchSmolLM2();
const tokens = +args.tokens;
const formats = args.formats.split(',') as ExportFormat[];
const work = workFolder();
const at = (...parts: string[]) => join(work, ...parts);

interface Row {
  readonly prompt: number[];
  readonly answer: number[];
}

interface Answers {
  readonly warnings: string[];
  readonly ids: number[][];
  readonly free: number[][];
  readonly forced: number[][];
}

const folder = llamaCppFolder();
let requests = 0;

/** A copy of the packages whose only kernels are those for AVX2; undefined where their files have other names. */
function copyWithAvx2(): string | undefined {
  const copy = at('llama-cpp-avx2');
  let found = false;
  const isKept = (path: string) => {
    const isAvx2 = basename(path) === 'libggml-cpu-haswell.so';
    found ||= isAvx2;
    return isAvx2 || !basename(path).startsWith('libggml-cpu-');
  };
  cpSync(folder, copy, { recursive: true, filter: isKept });
  return found ? copy : undefined;
}

function llamaCpp(request: object, packages = folder): Answers {
  const file = at(`request-${requests++}.json`);
  writeFileSync(file, JSON.stringify({ tokens, threads: +args.threads, ...request }));
  const script = join(import.meta.dirname, 'peer', 'llama-cpp.mjs');
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, packages, file], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  });
  if (status !== 0) throw new GraftError('environment', `llama.cpp ended with ${status}: ${stderr.slice(-2000)}`);
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as Answers;
}

/** Graft's greedy continuation of each prompt, as `graft generate` computes it. */
function ourRows(model: Model, prompts: readonly number[][], ends: readonly number[]): Row[] {
  return prompts.map((prompt) => {
    const steps = generate(model, prompt, { maxNewTokens: tokens, eosIds: ends, temperature: 0 });
    const answer: number[] = [];
    for (;;) {
      const step = steps.next();
      if (step.done) return { prompt, answer };
      answer.push(step.value);
    }
  });
}

interface Agreement {
  readonly rows: number;
  /** Shares of equal tokens: in rows that each goes on by itself, and token by token on Graft's rows. */
  readonly free: number;
  readonly forced: number;
  readonly warnings: string[];
}

/** Warnings that are about a tiny model's vocabulary or the length of llama.cpp's context, and not about the file. */
const expected = /n_ctx|newline token|special_eot_id is not in special_eog_ids/;

/** The share of tokens that are those of `answers`, at the same places. */
function equalShare(answers: readonly number[][], others: readonly number[][]): number {
  const equal = answers.flatMap((answer, r) => answer.map((token, i) => token === others[r]![i]));
  return equal.filter(Boolean).length / equal.length;
}

function agreement(file: string, rows: readonly Row[], lora?: string): Agreement {
  const { free, forced, warnings } = llamaCpp({ model: file, rows, ...(lora && { lora }) });
  const answers = rows.map(({ answer }) => answer);
  return {
    rows: rows.length,
    free: equalShare(answers, free),
    forced: equalShare(answers, forced),
    warnings: warnings.filter((line) => !expected.test(line)),
  };
}

function exported(from: string, to: ExportFormat, file: string, embedding?: ExportFormat): string {
  using model = loadModel(from, { quantize: 'keep' });
  const { formatOf } = formatsFor(model, { to, ...(embedding && { embedding }) });
  const tokenizer = from.endsWith('.gguf') ? undefined : tokenizerIfAny(from)?.gguf(model.vocabSize);
  saveGguf(model, file, { source: from, formatOf, tokenizer: tokenizer?.fields });
  return file;
}

/** Copies a golden model, with a byte-level tokenizer of so few tokens that it fits. */
function withTokenizer(name: string): string {
  const dir = at(name);
  cpSync(golden('models', name), dir, { recursive: true });
  const tokens = [...Array.from({ length: 92 }, (_, i) => String.fromCharCode(33 + i)), 'Ġ', 'Ċ', '<|end|>'];
  const end = { id: 94, content: '<|end|>', special: true, normalized: false };
  const step = { type: 'ByteLevel', add_prefix_space: false, use_regex: true };
  const model = { type: 'BPE', vocab: Object.fromEntries(tokens.map((token, id) => [token, id])), merges: [] };
  const json = { added_tokens: [end], pre_tokenizer: step, decoder: { type: 'ByteLevel' }, model };
  writeFileSync(join(dir, 'tokenizer.json'), JSON.stringify(json));
  writeFileSync(join(dir, 'tokenizer_config.json'), JSON.stringify({ eos_token: '<|end|>' }));
  const config = JSON.parse(readFileSync(join(dir, 'config.json'), 'utf8'));
  writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, eos_token_id: 94 }));
  return dir;
}

await startEngine();
currentEngine().native.threads(+args.threads);
const bars: Bar[] = [];
const details: Record<string, unknown> = {};
let warnings: string[] = [];

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;

function compare(what: string, file: string, prompts: readonly number[][], ends: readonly number[], minimum = 0.95) {
  using model = loadModel(file, { quantize: 'keep' });
  const result = agreement(file, ourRows(model, prompts, ends));
  warnings = [...warnings, ...result.warnings.map((line) => `${what}: ${line}`)];
  details[what] = { ...result, free: round(result.free), forced: round(result.forced) };
  bars.push({ what: `${what}: tokens equal`, got: result.forced, bar: minimum, better: 'more' });
  if (/^float(16|32)$/.test(what))
    bars.push({ what: `${what}: tokens equal in rows that go on`, got: result.free, bar: 0.95, better: 'more' });
  console.log(
    `${what}: ${percent(result.forced)} token by token, ${percent(result.free)} in rows that go on by themselves`,
  );
}

/** Rows within every model's positions and windows. */
const below = integers(7);
const shortPrompts = Array.from({ length: 8 }, () => Array.from({ length: 4 }, () => 3 + below(80)));

for (const name of ['llama2', 'llama3', 'llama-linear', 'qwen2', 'qwen3', 'qwen3-yarn']) {
  compare(`tiny ${name}`, exported(withTokenizer(name), 'float32', at(`${name}.gguf`)), shortPrompts, [94]);
}
const tiny = tinyModel(at('tiny'));
for (const to of formats) {
  compare(`tiny llama3 ${to}`, exported(tiny, to, at(`tiny-${to}.gguf`)), shortPrompts, tokenizerOf(tiny).eosIds, 0.9);
}

const corpus = readFileSync(golden('tokenizer', 'corpus.jsonl'), 'utf8')
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line) as string);
const tokenizer = tokenizerOf(real);
/** Questions of many kinds, as a user of an instruction model asks them. */
const subjects = [
  'the sea',
  'a bicycle',
  'bread',
  'the moon',
  'a library',
  'honey bees',
  'glass',
  'a thunderstorm',
  'tea',
  'maps',
];
const questions = [
  (subject: string) => `What is ${subject}? Answer in one sentence.`,
  (subject: string) => `Write a short poem about ${subject}.`,
  (subject: string) => `Give three facts about ${subject}.`,
  (subject: string) => `Explain ${subject} to a child of six years.`,
  (subject: string) => `Write an e-mail to a friend in which you mention ${subject}.`,
];
const template = ChatTemplate.of(tokenizer)!;
const prompts = questions
  .flatMap((question) => subjects.map(question))
  .slice(0, +args.prompts)
  .map((content) => template.render([{ role: 'user', content }], { addGenerationPrompt: true }))
  .map((text) => Array.from(tokenizer.encode(text, { addSpecialTokens: false })));
const folderOfAvx2 = copyWithAvx2();
for (const to of formats) {
  const file = at(`real-${to}.gguf`);
  compare(`${to}`, exported(real, to, file), prompts, tokenizer.eosIds);
  if (isBlockFormat(to as FormatName)) compareRounded(to, file);
}

/** Graft with rounded inputs against llama.cpp, and llama.cpp's build for AVX2 against the one for this processor. */
function compareRounded(to: ExportFormat, file: string) {
  using model = loadModel(file, { quantize: 'keep', activation: 'q8' });
  const rows = ourRows(model, prompts, tokenizer.eosIds);
  const answers = rows.map(({ answer }) => answer);
  const { free, forced } = llamaCpp({ model: file, rows });
  const other =
    folderOfAvx2 && llamaCpp({ model: file, rows: prompts.map((prompt) => ({ prompt, answer: [] })) }, folderOfAvx2);
  const [share, freeShare] = [equalShare(answers, forced), equalShare(answers, free)];
  const freeOfTwoBuilds = other ? equalShare(free, other.free) : undefined;
  const what = `${to}, activation q8`;
  details[what] = {
    rows: rows.length,
    free: round(freeShare),
    forced: round(share),
    ...(freeOfTwoBuilds !== undefined && { freeOfTwoBuilds: round(freeOfTwoBuilds) }),
  };
  bars.push({ what: `${what}: tokens equal`, got: share, bar: 0.95, better: 'more' });
  const builds = freeOfTwoBuilds === undefined ? '' : `; two builds of llama.cpp ${percent(freeOfTwoBuilds)}`;
  console.log(
    `${what}: ${percent(share)} token by token, ${percent(freeShare)} in rows that go on by themselves${builds}`,
  );
}

/** A LoRA on all linear layers that changes what the model says, as a GGUF file. */
function loraFile(base: string, scale: number): string {
  using model = loadModel(base, { quantize: 'keep' });
  const choice = { type: 'lora', r: 8, lora_alpha: 16, use_rslora: true, target_modules: 'all-linear' } as const;
  using adapter = attachMethods(model, [choice], 1);
  const random = integers(11);
  noGrad(() => {
    for (const part of adapter.parts) {
      for (const [name, parameter] of part.parameters) {
        if (!name.includes('lora_B')) continue;
        const values = Float32Array.from({ length: parameter.numel }, () => (random(2001) / 1000 - 1) * scale);
        ops.copy_(parameter, Tensor.from(values, parameter.shape));
      }
    }
  });
  saveAdapter(model, adapter, at('lora'), { base });
  convertAdapter(at('lora'), at('lora.gguf'), 'gguf', { base });
  return at('lora.gguf');
}

{
  const base = exported(real, 'float16', at('lora-base.gguf'));
  const lora = loraFile(base, 0.005);
  using model = loadModel(base, { quantize: 'keep' });
  const plain = ourRows(model, prompts.slice(0, 10), tokenizer.eosIds);
  using _ = loadAdapter(model, lora);
  const rows = ourRows(model, prompts.slice(0, 10), tokenizer.eosIds);
  const changed = rows.filter(({ answer }, i) => answer.join() !== plain[i]!.answer.join()).length;
  const result = agreement(base, rows, lora);
  warnings = [...warnings, ...result.warnings.map((line) => `lora: ${line}`)];
  details.lora = { ...result, changedRows: changed };
  bars.push({ what: 'LoRA from a GGUF file: tokens equal', got: result.forced, bar: 0.95, better: 'more' });
  bars.push({ what: 'LoRA from a GGUF file: rows that it changes', got: changed, bar: 1, better: 'more' });
}

/** Trains on e-mails with the rounding of q4_0, merges, and returns the file, and the held-out e-mails as prompts. */
function mailFile(): { file: string; prompts: number[][] } {
  const { train, heldOut } = chooseMails(fetchMails(), { train: 200, heldOut: Math.round(+args.mails / 2) });
  writeFileSync(at('mails.jsonl'), train.map((mail) => `${mailRow(mail)}\n`).join(''));
  const recipe = {
    model: real,
    method: [
      { type: 'lora', r: 8, lora_alpha: 16, target_modules: 'all-linear' },
      { type: 'qat', weight: 'q4_0' },
    ],
    data: at('mails.jsonl'),
    train: { lr: 1e-3, epochs: 1, batch_size: 4, schedule: 'cosine', warmup_steps: 4, max_grad_norm: 1 },
    run: { dir: at('mails') },
  };
  writeFileSync(at('mails.json'), JSON.stringify(recipe));
  const { adapter } = graft('train', at('mails.json'), '--json') as { adapter: string };
  const out = at('mails.gguf');
  graft('merge', '--model', real, '--adapter', adapter, '--to', 'q4_0', '--out', out, '--json');
  const question = (mail: Mail) => template.render([...mailQuestion(mail)], { addGenerationPrompt: true });
  const ids = (mail: Mail) => Array.from(tokenizer.encode(question(mail), { addSpecialTokens: false }));
  return { file: out, prompts: heldOut.map(ids) };
}

{
  const { file, prompts } = mailFile();
  using model = loadModel(file, { quantize: 'keep' });
  const rows = ourRows(model, prompts, tokenizer.eosIds);
  const { free } = llamaCpp({ model: file, rows });
  const text = (ids: readonly number[]) => tokenizer.decode(ids).split('<|')[0]!.trim();
  const equal = rows.filter(({ answer }, r) => text(answer) === text(free[r]!.slice(0, answer.length))).length;
  const answers = Object.groupBy(rows, ({ answer }) => text(answer));
  const counts = Object.entries(answers).map(([answer, list]) => [answer, list!.length]);
  details['e-mails'] = { rows: rows.length, equal, answers: Object.fromEntries(counts) };
  const bar = { bar: 0.99, better: 'more' } as const;
  bars.push({ what: 'e-mails, trained with q4_0: equal answers', got: equal / rows.length, ...bar });
}

/** Writes a tiny model with a tokenizer. */
function modelFor(json: object, name: string): string {
  const dir = tinyModel(at(`tokenizer-${name}`), 700);
  rmSync(join(dir, 'tokenizer_config.json'));
  writeFileSync(join(dir, 'tokenizer.json'), JSON.stringify(json));
  return dir;
}

for (const name of ['llama3', 'qwen2', 'llama2', 'mistral']) {
  const isSentencePiece = name === 'llama2' || name === 'mistral';
  const dir = modelFor(isSentencePiece ? withAllMerges(name) : tokenizerJson(name), name);
  const { ids } = llamaCpp({ model: exported(dir, 'float32', at(`${name}-tokenizer.gguf`)), texts: corpus });
  // llama.cpp does not normalise, puts a space before each text of SentencePiece (the exporter says both), and takes
  // tokens of these names, which the golden has as common words, for special ones.
  const isWord = isSentencePiece ? /<\|(im_end|endoftext)\|>/ : /^$/;
  const counts = (text: string) =>
    !isWord.test(text) &&
    (name !== 'qwen2' || text.normalize('NFC') === text) &&
    (name !== 'mistral' || !/^[ ▁]|<\/?s>|<unk>/.test(text));
  tell(name, ids, loadTokenizer(join(dir, 'tokenizer.json')), counts);
}
tell('the real model', llamaCpp({ model: at(`real-${formats[0]}.gguf`), texts: corpus }).ids, tokenizer);

function tell(
  name: string,
  ids: readonly number[][],
  ours: ReturnType<typeof tokenizerOf>,
  counts: (text: string) => boolean = () => true,
): void {
  const texts = corpus.filter(counts);
  const differing = corpus.filter(
    (text, i) => counts(text) && ids[i]!.join() !== Array.from(ours.encode(text, { addSpecialTokens: false })).join(),
  );
  details[`tokenizer ${name}`] = { texts: texts.length, differing };
  const share = 1 - differing.length / texts.length;
  bars.push({ what: `tokenizer of ${name}: texts with the same ids`, got: share, bar: 0.99, better: 'more' });
}

bars.push({ what: 'warnings of llama.cpp', got: warnings.length, bar: 0, better: 'less' });
report('gguf', bars, { model: real, peer: `node-llama-cpp ${llamaCppVersion}`, warnings, ...details });

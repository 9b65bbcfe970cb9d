import { GraftError } from '../base/index.ts';
import { stream, type Tokenizer } from '../data/index.ts';
import { type KvCache, type Model, packTokens } from '../nn/index.ts';
import { noGrad, ops, scope } from '../tensor/index.ts';
import { checkSampling, type SamplingOptions, sample } from './sampling.ts';

export interface GenerateOptions extends SamplingOptions {
  readonly maxNewTokens: number;
  /** Ids that end the answer; the one that did is not part of it. */
  readonly eosIds?: readonly number[];
  readonly seed?: number;
}

export interface GenerateSummary {
  readonly reason: 'eos' | 'length' | 'stop';
  readonly prefillSeconds: number;
  readonly decodeSeconds: number;
}

/** Prompt tokens that are read at one time: enough for products at full rate, few enough to bound memory. */
const prefillTokens = 1024;

/** Logits [V] of the last of `ids`, which the cache then holds. */
function next(model: Model, ids: readonly number[], cache: KvCache): Float32Array {
  return noGrad(() => {
    using _ = scope();
    const hidden = model.hidden(packTokens([ids], cache.length), cache);
    const last = ops.narrow(hidden, 0, ids.length - 1, 1);
    return model.logits(last).data() as Float32Array;
  });
}

/**
 * Continues `prompt` token by token; the ids of the answer come one by one. Ends with a summary.
 * @throws GraftError 'usage' when the prompt is empty or leaves no room in the model's context
 */
export function* generate(model: Model, prompt: readonly number[], options: GenerateOptions): Generator<number, GenerateSummary> {
  checkSampling(options);
  if (prompt.length === 0) throw new GraftError('usage', 'the prompt has no tokens', { place: 'prompt' });
  const room = model.contextLength - prompt.length;
  if (room < 1) {
    throw new GraftError('usage', `the prompt has ${prompt.length} tokens, and the model reads ${model.contextLength}`, { place: 'prompt', mend: 'Shorten it' });
  }
  const most = Math.min(options.maxNewTokens, room);
  using cache = model.newCache(prompt.length + most);
  const random = stream(options.seed ?? 0, 3);
  const seen = [...prompt];

  const start = performance.now();
  let logits = new Float32Array();
  for (let at = 0; at < prompt.length; at += prefillTokens) logits = next(model, prompt.slice(at, at + prefillTokens), cache) as Float32Array<ArrayBuffer>;
  const prefillSeconds = (performance.now() - start) / 1e3;
  // Only our own time counts, not what the consumer does between two tokens.
  let decodeSeconds = 0;
  for (let made = 0; made < most; made++) {
    const began = performance.now();
    const id = sample(logits, seen, options, random);
    if (options.eosIds?.includes(id)) return { reason: 'eos', prefillSeconds, decodeSeconds };
    seen.push(id);
    if (made + 1 < most) logits = next(model, [id], cache) as Float32Array<ArrayBuffer>;
    decodeSeconds += (performance.now() - began) / 1e3;
    yield id;
  }
  return { reason: 'length', prefillSeconds, decodeSeconds };
}

export interface TextOptions extends GenerateOptions {
  /** The answer ends before the first of these. */
  readonly stop?: readonly string[];
}

export interface TextResult {
  readonly text: string;
  readonly ids: number[];
  readonly reason: GenerateSummary['reason'];
  readonly promptTokens: number;
  readonly prefillTokensPerSecond: number;
  readonly decodeTokensPerSecond: number;
}

/** Generates text; `onText` gets it as it becomes certain: whole characters, and nothing that a stop string could begin in. */
export function generateText(model: Model, tokenizer: Tokenizer, prompt: readonly number[], options: TextOptions, onText: (text: string) => void = () => {}): TextResult {
  const steps = generate(model, prompt, { eosIds: tokenizer.eosIds, ...options });
  const decoder = tokenizer.stream({ skipSpecialTokens: true });
  const stops = options.stop ?? [];
  const ids: number[] = [];
  let text = '';
  let shown = 0;
  const show = (end: number) => {
    if (end > shown) onText(text.slice(shown, end));
    shown = Math.max(shown, end);
  };
  let reason: GenerateSummary['reason'] | undefined;
  let summary: GenerateSummary | undefined;
  const began = performance.now();
  while (!summary && reason === undefined) {
    const step = steps.next();
    if (step.done) {
      summary = step.value;
      text += decoder.end();
    } else {
      ids.push(step.value);
      text += decoder.push(step.value);
    }
    const found = stops.map((s) => text.indexOf(s)).filter((i) => i >= 0);
    if (found.length > 0) {
      text = text.slice(0, Math.min(...found));
      reason = 'stop';
      show(text.length);
      break;
    }
    show(summary ? text.length : text.length - held(text, stops));
  }
  if (!summary) steps.return({ reason: 'stop', prefillSeconds: 0, decodeSeconds: 0 });
  const seconds = (performance.now() - began) / 1e3;
  const prefill = summary?.prefillSeconds ?? seconds;
  const decode = summary?.decodeSeconds ?? seconds;
  return {
    text,
    ids,
    reason: reason ?? summary!.reason,
    promptTokens: prompt.length,
    prefillTokensPerSecond: prompt.length / prefill,
    // The first token comes out of the prefill.
    decodeTokensPerSecond: Math.max(0, ids.length - 1) / decode,
  };
}

/** How many characters at the end of `text` could be the beginning of a stop string. */
function held(text: string, stops: readonly string[]): number {
  let most = 0;
  for (const stop of stops) {
    for (let n = Math.min(stop.length - 1, text.length); n > most; n--) if (text.endsWith(stop.slice(0, n))) most = n;
  }
  return most;
}

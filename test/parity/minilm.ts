/** all-MiniLM-L6-v2 against transformers' float64 and Python's tokenizer (tools/golden/make_minilm.py). */
import { readFileSync } from 'node:fs';
import { loadTokenizer, type Tokenizer } from '../../src/data/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { type Model, type PackedTokens, packTokens } from '../../src/nn/index.ts';
import { noGrad, ops, scope, type Tensor } from '../../src/tensor/index.ts';
import { golden, integers, numbers, readTensors, relativeError } from '../support.ts';

interface Lines {
  prefix: number[];
  suffix: number[];
  lines: { ids: number[]; special?: number[]; text?: string }[];
}

export interface Comparison {
  /** Largest relative difference of the hidden states in front of, between and behind the blocks, and how many. */
  readonly hidden: number;
  readonly hiddenCompared: number;
  /** The same of sentence embeddings, all sentences in one batch, and of the cosines of all pairs (absolute). */
  readonly embedding: number;
  readonly cosine: number;
  readonly sentences: number;
  /** Lines of the corpus whose ids, and decoded text, are Python's. */
  readonly sameIds: number;
  readonly sameText: number;
  readonly lines: number;
}

/** @param dir a Hugging Face directory of the model */
export function compareMiniLM(dir: string): Comparison {
  using _ = scope();
  const tokenizer = loadTokenizer(dir);
  const { tensors } = readTensors(golden('real', 'minilm.safetensors'));
  const { sentences, similarity } = JSON.parse(readFileSync(golden('real', 'minilm.json'), 'utf8')) as {
    sentences: { text: string }[];
    similarity: number[][];
  };
  using model = loadModel(dir, { task: 'embedding' });
  const rows = sentences.map(({ text }) => {
    const ids = [...tokenizer.encode(text)];
    return ids.length > 256 ? [...ids.slice(0, 255), ids.at(-1)!] : ids;
  });
  rows.forEach((ids, i) => {
    if (`${ids}` !== `${integers(tensors.get(`ids.${i}`)!)}`) throw new Error(`sentence ${i} has other token ids`);
  });
  return noGrad(() => {
    const [hidden, hiddenCompared] = compareHidden(model, rows, tensors);
    const tokens = packTokens(rows);
    const all = model.logits(model.hidden(tokens), tokens.rowStarts);
    const wanted = ops.stack(rows.map((_, i) => tensors.get(`embedding.${i}`)!));
    const cosines = Array.from(numbers(ops.matmul(all, ops.contiguous(ops.t(all)))));
    const cosine = similarity.flat().reduce((worst, c, i) => Math.max(worst, Math.abs(c - cosines[i]!)), 0);
    const embedding = relativeError(numbers(all), numbers(wanted));
    return { hidden, hiddenCompared, embedding, cosine, sentences: rows.length, ...compareLines(tokenizer) };
  });
}

function compareHidden(model: Model, rows: number[][], tensors: ReadonlyMap<string, Tensor>): [number, number] {
  let worst = 0;
  let compared = 0;
  const columns = tensors.get('columns')!;
  rows.forEach((ids, i) => {
    const want = tensors.get(`hidden.${i}`);
    if (!want) return;
    const got = heard(model, packTokens([ids]), (x) => ops.contiguous(ops.indexSelect(x, 1, columns)));
    if (got.length !== want.size(0)) throw new Error(`${got.length} hidden states, not ${want.size(0)}`);
    got.forEach((state, layer) => {
      worst = Math.max(worst, relativeError(state, numbers(ops.contiguous(ops.select(want, 0, layer)))));
      compared++;
    });
  });
  return [worst, compared];
}

/** What block 0 is given, and what comes out of every block. */
function heard(model: Model, tokens: PackedTokens, pick: (x: Tensor) => Tensor): Float32Array[] {
  const states: Float32Array[] = [];
  const note = (x: Tensor) => states.push(numbers(pick(x)).slice());
  const stop = model.ports.add({
    enabled: true,
    afterEmbedding(x) {
      note(x);
      return x;
    },
    afterMlp({ delta, residual, norm }) {
      note(norm!(ops.add(residual, delta)));
      return delta;
    },
  });
  model.hidden(tokens);
  stop();
  return states;
}

function compareLines(tokenizer: Tokenizer) {
  const read = (...path: string[]) => readFileSync(golden(...path), 'utf8').trim();
  const corpus = read('tokenizer', 'corpus.jsonl')
    .split('\n')
    .map((line) => JSON.parse(line) as string);
  const { prefix, suffix, lines } = JSON.parse(read('real', 'minilm.tokenizer.json')) as Lines;
  let [sameIds, sameText] = [0, 0];
  corpus.forEach((text, i) => {
    const { ids, special = [...prefix, ...ids, ...suffix], text: decoded = text } = lines[i]!;
    const whole = [...tokenizer.encode(text)];
    if (`${whole}` === `${special}`) sameIds++;
    if (tokenizer.decode(whole, { skipSpecialTokens: true }) === decoded) sameText++;
  });
  return { sameIds, sameText, lines: corpus.length };
}

import { GraftError } from '../base/index.ts';
import { type ChatTemplate, requireChatTemplate } from './chat/index.ts';
import type { Example } from './example.ts';
import { requireTokenizer, type Tokenizer } from './tokenizer/index.ts';

/** One row of tokens to learn from. */
export interface Row {
  readonly ids: Int32Array;
  /** Language modelling: the token at i where it is learned; tags: its class; −100 where it is only read. Empty: none. */
  readonly labels: Int32Array;
  /** file:line */
  readonly place: string;
  /** Token types (BERT's segments); all 0 where absent. */
  readonly types?: Int32Array;
  /** Of the row as a whole: a class, a number, a 0 or 1 for each class, or start and end of an answer. */
  readonly target?: readonly number[];
  /** Makes an image [channels, height, width] in the place of the ids, which then only count its tokens. */
  readonly pixels?: () => Float32Array;
  /** The row that belongs to this one (the second text of a pair); packed right behind it. */
  readonly pair?: Row;
  /** Which of several tasks that share an adapter it belongs to. */
  readonly task?: number;
  /** What it was made of: rows of one example are its windows. */
  readonly example?: Example;
  /** Where each token stands in the example's context, start and end in UTF-16 units; −1 where it does not. */
  readonly spans?: Int32Array;
  /** The word of the example that each token is of; −1: none. */
  readonly words?: Int32Array;
}

export interface RowOptions {
  readonly tokenizer: Tokenizer | undefined;
  readonly chat: ChatTemplate | undefined;
  readonly vocabSize: number;
  /** Tokens; what is longer is cut at the end. */
  readonly maxLength: number;
  /** `completion`: assistant turns or completions only. */
  readonly trainOn: 'completion' | 'all';
}

/** What became of the examples on the way to rows. */
export interface RowReport {
  rows: number;
  cutRows: number;
  cutTokens: number;
  /** Rows that had nothing left to learn, and are not among the result. */
  emptyRows: number;
}

const ignored = -100;

/** Examples as rows of tokens. @throws GraftError 'input' with the place of what cannot be a row; when no row is left */
export function toRows(
  examples: Iterable<{ example: Example; place: string }>,
  options: RowOptions,
): { rows: Row[]; report: RowReport } {
  const report: RowReport = { rows: 0, cutRows: 0, cutTokens: 0, emptyRows: 0 };
  const rows: Row[] = [];
  let firstEmpty: string | undefined;
  for (const { example, place } of examples) {
    let { ids, labels } = tokens(example, place, options);
    const beyond = ids.find((id) => id >= options.vocabSize);
    if (beyond !== undefined) {
      throw new GraftError(
        'mismatch',
        `the tokenizer gives id ${beyond} (${options.tokenizer?.idToToken(beyond)}), and the vocabulary of the model ends at ${options.vocabSize - 1}`,
        { place, hint: 'Use the tokenizer that belongs to the model' },
      );
    }
    if (ids.length > options.maxLength) {
      report.cutRows++;
      report.cutTokens += ids.length - options.maxLength;
      ids = ids.slice(0, options.maxLength);
      labels = labels.slice(0, options.maxLength);
    }
    // The first token has nothing before it that could predict it.
    if (!labels.subarray(1).some((label) => label !== ignored)) {
      report.emptyRows++;
      firstEmpty ??= place;
    } else rows.push({ ids, labels, place, ...(example.task !== undefined && { task: example.task }) });
  }
  report.rows = rows.length;
  if (rows.length === 0) {
    throw new GraftError(
      'input',
      report.emptyRows > 0 ? `none of the ${report.emptyRows} rows has a token to learn` : 'there are no rows',
      {
        ...(firstEmpty && { place: firstEmpty }),
        hint:
          report.cutRows > 0
            ? `Raise max_length above ${options.maxLength}: the answers are cut off`
            : 'Look at the answers of the rows',
        data: { ...report },
      },
    );
  }
  return { rows, report };
}

function tokens(example: Example, place: string, options: RowOptions): { ids: Int32Array; labels: Int32Array } {
  if (example.kind === 'tokens') {
    const ids = checkedIds(example.ids, options.vocabSize, place);
    return { ids, labels: checkedLabels(example.labels ?? example.ids, ids.length, options.vocabSize, place) };
  }
  const tokenizer = requireTokenizer(options.tokenizer, place);
  const all = options.trainOn === 'all';
  switch (example.kind) {
    case 'text': {
      const ids = withEnd(tokenizer.encode(example.text), tokenizer);
      return { ids, labels: ids.slice() };
    }
    case 'completion': {
      const prompt = withoutEnd(tokenizer.encode(example.prompt), example.prompt, tokenizer);
      const whole = tokenizer.encode(example.prompt + example.completion);
      // Read as one text where the prompt's tokens stay what they are at inference, else token by token after it.
      const stable = prompt.every((id, i) => whole[i] === id) && whole.length > prompt.length;
      const ids = withEnd(stable ? whole : join(prompt, continued(example.completion, tokenizer)), tokenizer);
      return { ids, labels: ids.map((id, i) => (all || i >= prompt.length ? id : ignored)) };
    }
    case 'chat': {
      const hint = 'Use rows of prompt and completion, or a model with a chat template';
      const chat = requireChatTemplate(options.chat, place, hint);
      try {
        if (all) {
          const ids = tokenizer.encode(chat.render(example.messages, { tools: example.tools }), {
            addSpecialTokens: false,
          });
          return { ids, labels: ids.slice() };
        }
        const { text, spans } = chat.learned(example.messages, example.tools, example.from);
        const { ids, mask } = tokenizer.encodeWithMask(text, spans);
        return { ids, labels: ids.map((id, i) => (mask[i] ? id : ignored)) };
      } catch (cause) {
        if (!(cause instanceof GraftError) || cause.place) throw cause;
        throw new GraftError(cause.kind, cause.message, { place, cause });
      }
    }
    default:
      throw new GraftError('usage', `rows of ${kinds[example.kind]} do not say what to write`, {
        place,
        hint: "Set the recipe's task to what the rows are for, or data.format to text",
      });
  }
}

const kinds = {
  labelled: 'labelled texts',
  tags: 'tagged words',
  question: 'questions with a context',
  image: 'images',
} as const;

/** A prompt goes on: an end token that the tokenizer put behind it, and that its text does not hold, is taken off. */
function withoutEnd(ids: Int32Array, text: string, tokenizer: Tokenizer): Int32Array {
  if (tokenizer.eosId === undefined || ids.at(-1) !== tokenizer.eosId) return ids;
  return tokenizer.encode(text, { addSpecialTokens: false }).at(-1) === tokenizer.eosId ? ids : ids.slice(0, -1);
}

/** The ids of a text that follows another: without the space that some tokenizers put at the start of every text. */
function continued(text: string, tokenizer: Tokenizer): Int32Array {
  const encode = (s: string) => tokenizer.encode(s, { addSpecialTokens: false });
  for (const anchor of ['\n', '.', 'a']) {
    const [alone, both] = [encode(anchor), encode(anchor + text)];
    if (alone.every((id, i) => both[i] === id)) return both.slice(alone.length);
  }
  return encode(text);
}

/** The end token teaches the model to stop. */
function withEnd(ids: Int32Array, { eosId }: Tokenizer): Int32Array {
  return eosId === undefined || ids.at(-1) === eosId ? ids : join(ids, Int32Array.of(eosId));
}

function join(a: Int32Array, b: Int32Array): Int32Array {
  const both = new Int32Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

/** Ids as given. @throws GraftError 'input' for none, and for one outside the vocabulary */
export function checkedIds(ids: readonly number[], vocabSize: number, place: string): Int32Array {
  if (ids.length === 0) throw new GraftError('input', 'the row has no ids', { place });
  const id = ids.findIndex((value) => outside(value, vocabSize));
  if (id >= 0)
    throw new GraftError('input', `ids[${id}] is ${ids[id]}, outside the vocabulary of ${vocabSize}`, { place });
  return Int32Array.from(ids);
}

/** One label a token as given, each −100 or below `count`. @throws GraftError 'input' */
export function checkedLabels(
  labels: readonly number[] | number,
  length: number,
  count: number,
  place: string,
  among = `the vocabulary of ${count}`,
): Int32Array {
  const given = typeof labels === 'number' ? [labels] : labels;
  if (given.length !== length) {
    throw new GraftError('input', `${length} ids have ${given.length} labels`, {
      place,
      hint: 'Give one label for each id, −100 where nothing is learned',
    });
  }
  const label = given.findIndex((value) => value !== ignored && outside(value, count));
  if (label >= 0) {
    throw new GraftError('input', `labels[${label}] is ${given[label]}, outside ${among}`, {
      place,
      hint: 'Use −100 where nothing is learned',
    });
  }
  return Int32Array.from(given);
}

const outside = (value: number, count: number) => !Number.isInteger(value) || value < 0 || value >= count;

import type { Message } from '../example.ts';
import { NONE, type Piece, SEVERAL } from './trace.ts';

/** Renders a conversation piece by piece, with or without the generation prompt; throws when the template rejects it. */
export type Trace = (messages: readonly Message[], addGenerationPrompt: boolean) => readonly Piece[];
/** Start and stop in the rendered text, in UTF-16 units. */
export type Span = [start: number, stop: number];

/** A piece and where it is in the text. */
interface Placed extends Piece {
  readonly start: number;
  readonly stop: number;
}
/** What the template prints in the turn of one message: pieces that follow one another. */
type Region = readonly Placed[];

/** A conversation as it is rendered. */
interface Rendering {
  readonly text: string;
  readonly pieces: readonly Placed[];
  readonly regions: ReadonlyMap<number, Region>;
  readonly messages: readonly Message[];
  /** What the turn of a message prints before its text where the message is the first; undefined where that is rejected. */
  readonly headerAlone: (index: number) => string | undefined;
  /** What closes a turn that is the last one and prints no end in its own turn; found with the message of this index. */
  readonly closingOf: (index: number) => string;
  /** What the generation prompt gave of earlier turns of the assistant, without white space around it. */
  readonly headers: string[];
}

/** Why the spans of a conversation cannot be told. */
export class UnclearTurns extends Error {}

const join = (pieces: readonly Piece[]) => pieces.map(({ text }) => text).join('');
const isBlank = (text: string) => text.trim() === '';

/** The pieces with their places; neighbours of the same origin are one. */
function place(pieces: readonly Piece[]): Placed[] {
  const placed: Placed[] = [];
  for (const piece of pieces) {
    const last = placed.at(-1);
    const start = last?.stop ?? 0;
    const stop = start + piece.text.length;
    const isSame = last?.turn === piece.turn && last.innerTurn === piece.innerTurn && last.source === piece.source;
    if (isSame) placed[placed.length - 1] = { ...last, text: last.text + piece.text, stop };
    else placed.push({ ...piece, start, stop });
  }
  return placed;
}

/**
 * The spans of the assistant's turns in the rendering of a conversation: what the model has to write after the generation
 * prompt, end-of-turn token included, without white space after it. What is printed in these turns of other messages (answers of
 * tools) is left out.
 * @param isLearned whether the message of an index, one of the assistant's, is asked for
 * @param endOfText the token at which a model stops; empty where it is not known
 * @throws UnclearTurns
 */
export function spansOfTurns(
  trace: Trace,
  messages: readonly Message[],
  isLearned: (index: number) => boolean,
  endOfText: string,
): { text: string; spans: Span[] } {
  const pieces = withSystemInTurns(place(trace(messages, false)), messages);
  const text = join(pieces);
  const regions = regionsOf(pieces);
  const order = [...regions.keys()].filter((i) => messages[i]!.role !== 'system');
  if (order.some((i, n) => i < order[n - 1]!)) {
    throw new UnclearTurns('the template prints the messages in another order');
  }
  const prompts = promptFinder(trace, messages);
  const headerAlone = (i: number) => attempt(() => headerOf(regionsOf(place(trace([messages[i]!], false))).get(0)!));
  let closing: string | undefined;
  const closingOf = (i: number) => {
    closing ??= attempt(() => afterTurns(trace(messages.slice(0, i + 1), false))) ?? '';
    return closing;
  };
  const rendering: Rendering = { text, pieces, regions, messages, headerAlone, closingOf, headers: [] };
  const spans: Span[] = [];
  for (const [i, { role }] of messages.entries()) {
    if (role !== 'assistant' || !isLearned(i)) continue;
    const region = regions.get(i) ?? regionOutsideTurns(pieces, i);
    if (!region) continue; // the template leaves this turn out
    spans.push(...spansOfRegion(region, i, prompts(i), endOfText, rendering));
  }
  return { text, spans };
}

/**
 * The pieces with a system prompt, which a template may keep and print in the turn of the first question, as a part of that turn.
 * It stays what another message says (`innerTurn`).
 */
function withSystemInTurns(pieces: readonly Placed[], messages: readonly Message[]): Placed[] {
  return pieces.map((piece, n) => {
    const { turn } = piece;
    if (messages[turn]?.role !== 'system') return piece;
    let [from, to] = [n, n];
    while (pieces[from - 1]?.turn === turn) from--;
    while (pieces[to + 1]?.turn === turn) to++;
    const before = pieces[from - 1]?.turn;
    return before !== undefined && before === pieces[to + 1]?.turn ? { ...piece, turn: before } : piece;
  });
}

/** The regions of the messages that have one. @throws UnclearTurns where one is printed in two places */
function regionsOf(pieces: readonly Placed[]): Map<number, Region> {
  const regions = new Map<number, Placed[]>();
  let last = NONE;
  for (const piece of pieces) {
    const { turn } = piece;
    if (turn !== NONE) {
      const region = regions.get(turn);
      if (!region) regions.set(turn, [piece]);
      else if (last === turn) region.push(piece);
      else throw new UnclearTurns('the template prints a message in two places');
    }
    last = turn;
  }
  return regions;
}

/** The region of a message that is printed outside of a loop over the messages, as some templates do with the last one. */
function regionOutsideTurns(pieces: readonly Placed[], i: number): Region | undefined {
  const isPart = ({ source, turn }: Piece) => turn === NONE && (source === i || source === SEVERAL);
  const [first, last] = [pieces.findIndex(isPart), pieces.findLastIndex(isPart)];
  if (first < 0) return undefined;
  const from = pieces.findLastIndex(({ turn }, at) => at < first && turn !== NONE) + 1;
  const to = pieces.findIndex(({ turn }, at) => at > first && turn !== NONE);
  const region = pieces.slice(from, to < 0 ? undefined : to);
  if (last >= from + region.length || region.some(({ source }) => source !== NONE && source !== i)) {
    throw new UnclearTurns('the template prints the assistant turns outside of a loop over the messages');
  }
  return region.map((piece) => ({ ...piece, turn: i, innerTurn: i }));
}

/** Whether a piece of the region of message i is text of that message or of the template, and not of another message. */
const belongsTo = (i: number, { innerTurn, source }: Piece) => innerTurn === i && (source === i || source === NONE);

function spansOfRegion(
  region: Region,
  i: number,
  prompts: readonly string[],
  endOfText: string,
  rendering: Rendering,
): Span[] {
  const { text } = rendering;
  if (region.some(({ source }) => source === SEVERAL)) {
    throw new UnclearTurns('the template joins several messages in one text');
  }
  const { start, prompt } = startOf(region, i, prompts, rendering.messages[i - 1]?.role === 'user');
  const lastText = region.findLast(({ source }) => source !== NONE);
  const tailStart = Math.max(start, lastText?.stop ?? start);
  const regionStop = region.at(-1)!.stop;
  let stop = tailStart + withoutNextPrompt(text.slice(tailStart, regionStop), prompt).trimEnd().length;
  const spans: Span[] = [];
  const ending =
    closingAfter(i, regionStop, rendering) ||
    (stop === tailStart && lastText && belongsTo(i, lastText) ? endingAfter(regionStop, rendering, prompt) : 0);
  if (ending > 0) stop = regionStop + ending;
  const given = text.slice(region[0]!.start, start).trim();
  if (given !== '') rendering.headers.push(given);
  for (const piece of withoutHeaders(region, given || (rendering.headers[0] ?? ''), start, endOfText)) {
    if (belongsTo(i, piece)) extend(spans, Math.max(piece.start, start), Math.min(piece.stop, stop));
  }
  if (stop > regionStop) extend(spans, regionStop, stop);
  return spans;
}

/**
 * The pieces of a region without a header that stands in it again: after the end of text, where a model stops, or with no text of
 * the message after it. Elsewhere the model goes on with it by itself, as from its reasoning to its answer.
 */
function withoutHeaders(region: Region, header: string, start: number, endOfText: string): Region {
  if (header === '') return region;
  for (const [n, piece] of region.entries()) {
    if (piece.source !== NONE || piece.stop <= start) continue;
    const at = piece.text.indexOf(header, Math.max(0, start - piece.start));
    if (at < 0) continue;
    const before = { ...piece, text: piece.text.slice(0, at), stop: piece.start + at };
    const after = { ...piece, text: piece.text.slice(at + header.length), start: before.stop + header.length };
    const [head, tail] = [
      [...region.slice(0, n), before],
      [after, ...region.slice(n + 1)],
    ];
    if (!tail.some(({ source }) => source !== NONE)) return head;
    const rest = withoutHeaders(tail, header, start, endOfText);
    const isNewTurn = endOfText !== '' && join(head).trimEnd().endsWith(endOfText);
    return isNewTurn
      ? [...head, ...rest]
      : [
          ...region.slice(0, n),
          { ...piece, text: piece.text.slice(0, at + header.length), stop: after.start },
          ...rest,
        ];
  }
  return region;
}

/** Adds a span, joined to the one before where nothing is between them. */
function extend(spans: Span[], start: number, stop: number): void {
  if (stop <= start) return;
  const last = spans.at(-1);
  if (last && last[1] === start) last[1] = stop;
  else spans.push([start, stop]);
}

/** The tag that opens the answer of a tool, which Gemma's templates print after a call that has none yet. */
const TOOL_ANSWER = /<\|?tool_response\|?>\s*$/;

/** The tail of a turn without the beginning of the next one, which some templates print at once. */
function withoutNextPrompt(tail: string, prompt: string): string {
  const next = prompt.trim();
  const at = next === '' ? -1 : tail.lastIndexOf(next);
  return (at >= 0 && isBlank(tail.slice(at + next.length)) ? tail.slice(0, at) : tail).replace(TOOL_ANSWER, '');
}

/**
 * Where the generation prompt ends in a region, and which prompt that is: the model writes what follows. The turn may begin within the prompt (another
 * turn may be closed first), and the prompt may go on where the turn does not (an opened `<think>`); it ends before the text of
 * the message, unless all of the prompt is there.
 * @param prompts that of the turn first
 * @param answersUser whether the user's turn is before it
 * @throws UnclearTurns where the turn begins otherwise
 */
function startOf(
  region: Region,
  i: number,
  prompts: readonly string[],
  answersUser: boolean,
): { start: number; prompt: string } {
  const text = join(region);
  const first = region[0]!.start;
  const content = region.find(({ source }) => source !== NONE);
  const header = text.slice(0, content ? content.start - first : text.length);
  for (const prompt of isBlank(header) ? prompts.slice(0, 1) : prompts) {
    const given = givenBy(prompt, text, header.length);
    if (given > 0) return { start: first + given, prompt };
    const at = isBlank(prompt) ? -1 : header.lastIndexOf(prompt.trim());
    if (at >= 0) return { start: first + at + prompt.trim().length, prompt };
  }
  const [own] = prompts as [string];
  if (isBlank(own)) return { start: first + (text.startsWith(own) ? own.length : 0), prompt: own };
  // A turn that goes on with one before it, as after the answer of a tool, may have no header.
  if (isBlank(header) || !answersUser) return { start: first, prompt: '' };
  throw new UnclearTurns(
    `the turn of message ${i} begins with ${JSON.stringify(header.slice(0, 60))}, and the generation prompt is ${JSON.stringify(own.slice(0, 60))}`,
  );
}

/** How much of the beginning of a turn, of which `headerLength` is before the text of its message, the prompt gives. */
function givenBy(prompt: string, text: string, headerLength: number): number {
  const blank = Math.min(text.length - text.trimStart().length, headerLength);
  const body = text.slice(blank);
  let longest = 0;
  for (let from = 0; from < prompt.length; from++) {
    if (from > 0 && (headerLength === blank || !isTokenStart(prompt, from))) continue;
    longest = Math.max(longest, sharedLength(body, prompt.slice(from), headerLength - blank));
  }
  return longest > 0 ? blank + longest : 0;
}

/** How long the beginning of a text is that a prompt has too, up to `limit` unless all of the prompt is there; white space may differ. */
function sharedLength(text: string, prompt: string, limit: number): number {
  const common = commonPrefixLength(text, prompt);
  if (common === prompt.length) return common;
  const whole = wholeTokens(text, prompt, Math.min(common, limit));
  const [at, promptAt] = [afterBlank(text, whole), afterBlank(prompt, whole)];
  if (at > limit || promptAt === prompt.length || at + promptAt === 2 * whole) return whole;
  const more = sharedLength(text.slice(at), prompt.slice(promptAt), limit - at);
  return more > 0 ? at + more : whole;
}

const afterBlank = (text: string, from: number) => from + /^\s*/.exec(text.slice(from))![0].length;

/** Whether a tag, a word after white space, or a line begins there. */
const isTokenStart = (text: string, at: number) =>
  !/\s/.test(text[at]!) && (/[<[]/.test(text[at]!) || /[\s>\]]/.test(text[at - 1]!));

/** The length of a common beginning of two texts without the beginning of a tag or a word that they do not share to its end. */
function wholeTokens(text: string, other: string, common: number): number {
  const shared = text.slice(0, common);
  const tag = /[<[][^<>[\]\s]*$/.exec(shared);
  if (tag) return tag.index;
  const isWord = (c: string | undefined) => c !== undefined && /[\p{L}\p{N}_]/u.test(c);
  if (isWord(text[common]) || isWord(other[common])) return /[\p{L}\p{N}_]*$/u.exec(shared)!.index;
  return common;
}

function commonPrefixLength(a: string, b: string): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

/**
 * The length of what follows the region of message i, where that is what closes a turn: the template prints the same after a
 * conversation that ends there, and other turns than the assistant's begin with it.
 */
function closingAfter(i: number, from: number, { text, regions, messages, closingOf }: Rendering): number {
  const closing = closingOf(i);
  if (isBlank(closing) || !text.startsWith(closing, from)) return 0;
  const isSeparator = [...regions].some(
    ([j, [first]]) => messages[j]!.role !== 'assistant' && text.startsWith(closing, first!.start),
  );
  return isSeparator ? closing.trimEnd().length : 0;
}

/** How much after the region of a turn that prints no end is its end: what the next turn prints before its own header. */
function endingAfter(from: number, rendering: Rendering, prompt: string): number {
  const { text, regions, messages, pieces } = rendering;
  const next = pieces.find(({ start }) => start === from);
  if (!next) return 0;
  if (next.turn === NONE) return withoutNextPrompt(text.slice(from), prompt).trimEnd().length;
  const role = messages[next.turn]!.role;
  if (role === 'assistant' || role === 'tool') return 0; // what they begin with depends on the turn before
  const own = rendering.headerAlone(next.turn);
  if (own === undefined) return 0;
  const header = headerOf(regions.get(next.turn)!);
  let common = 0;
  while (common < Math.min(header.length, own.length) && header.at(-1 - common) === own.at(-1 - common)) common++;
  let stop = header.length - common;
  const tag = /[<[][^<>[\]\s]*$/.exec(header.slice(0, stop));
  if (tag && /^[^<>[\]\s]*[>\]]/.test(header.slice(stop))) stop = tag.index;
  return header.slice(0, stop).trimEnd().length;
}

/** What a turn prints before the text of a message. */
const headerOf = (region: Region) => {
  const content = region.findIndex(({ source }) => source !== NONE);
  return join(content < 0 ? region : region.slice(0, content));
};

/**
 * The generation prompts of turns of the assistant, that of the turn first: it depends on who spoke before, so it is rendered once
 * for each of these. Some templates print none after certain turns, and yet a header: there the others tell which.
 */
function promptFinder(trace: Trace, messages: readonly Message[]): (i: number) => readonly string[] {
  const byRole = new Map<string, string>();
  const roleBefore = (i: number) => messages[i - 1]?.role ?? '';
  for (const [i, { role }] of messages.entries()) {
    if (role !== 'assistant' || byRole.has(roleBefore(i))) continue;
    const before = i === 0 ? anyQuestion : messages.slice(0, i);
    const prompt = attempt(() => promptAfter(trace, before));
    if (prompt !== undefined) byRole.set(roleBefore(i), prompt);
  }
  if (byRole.size === 0) byRole.set('', attempt(() => promptAfter(trace, anyQuestion)) ?? '');
  return (i) => {
    const own = byRole.get(roleBefore(i));
    const others = [...byRole.values()].filter((prompt) => prompt !== own && !isBlank(prompt));
    return own === undefined && others.length > 0 ? others : [own ?? '', ...others];
  };
}

/** Stands for what comes before a conversation that the assistant begins, or whose beginnings the template rejects. */
const anyQuestion: readonly Message[] = [{ role: 'user', content: 'a' }];

/** What a template prints after the turns of all messages. */
const afterTurns = (pieces: readonly Piece[]) =>
  join(pieces.slice(pieces.findLastIndex(({ turn, source }) => turn !== NONE || source !== NONE) + 1));

/** What follows a conversation when an answer is to be generated. */
function promptAfter(trace: Trace, messages: readonly Message[]): string {
  const pieces = trace(messages, true);
  const after = afterTurns(pieces);
  const [open, closed] = [join(pieces), join(attempt(() => trace(messages, false)) ?? [])];
  if (closed === '') return after;
  let added = open.length;
  if (open.startsWith(closed)) added = closed.length;
  else {
    const common = commonPrefixLength(open, closed);
    added = place(pieces).find(({ stop }) => stop > common)?.start ?? open.length;
  }
  const textStop = join(pieces.slice(0, pieces.findLastIndex(({ source }) => source !== NONE) + 1)).length;
  const difference = open.slice(Math.max(added, textStop)); // some templates print another system prompt with it
  return difference.length > after.length ? difference : after;
}

/** The result of `act`, or undefined when it throws: a template may reject an incomplete conversation. */
function attempt<T>(act: () => T): T | undefined {
  try {
    return act();
  } catch {
    return undefined;
  }
}

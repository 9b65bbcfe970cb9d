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

/** Why the spans of a conversation cannot be told. */
export class UnclearTurns extends Error {}

const join = (pieces: readonly Piece[]) => pieces.map(({ text }) => text).join('');
const isBlank = (text: string) => text.trim() === '';

function place(pieces: readonly Piece[]): Placed[] {
  let at = 0;
  return pieces.map((piece) => {
    const start = at;
    at += piece.text.length;
    return { ...piece, start, stop: at };
  });
}

/**
 * The spans of the assistant's turns in the rendering of a conversation: what the model has to write after the generation
 * prompt, end-of-turn token included, without white space after it. What is printed in these turns of other messages (answers of
 * tools) is left out.
 * @param isLearned whether the message of an index, one of the assistant's, is asked for
 * @throws UnclearTurns
 */
export function spansOfTurns(
  trace: Trace,
  messages: readonly Message[],
  isLearned: (index: number) => boolean,
): { text: string; spans: Span[] } {
  const pieces = place(trace(messages, false));
  const text = join(pieces);
  const regions = regionsOf(pieces);
  const prompts = promptFinder(trace, messages);
  const spans: Span[] = [];
  for (const [i, { role }] of messages.entries()) {
    if (role !== 'assistant' || !isLearned(i)) continue;
    const region = regions.get(i) ?? regionOutsideTurns(pieces, i);
    if (!region) continue; // the template leaves this turn out
    spans.push(...spansOfRegion(region, i, prompts(i), text, regions, messages, pieces));
  }
  return { text, spans };
}

/**
 * The spans between marks that the template prints, and the text without these.
 * @param isLearned whether the message of an index, in whose turn the mark is printed, is asked for
 * @throws UnclearTurns for a mark outside of every turn where not all turns are asked for
 */
export function spansOfMarks(
  pieces: readonly Piece[],
  [begin, end]: readonly [string, string],
  isLearned: (index: number) => boolean,
): { text: string; spans: Span[] } {
  let text = '';
  let start: number | undefined;
  const spans: Span[] = [];
  for (const piece of pieces)
    for (const part of piece.text.split(new RegExp(`(${begin}|${end})`))) {
      if (part === begin) {
        if (piece.turn === NONE)
          throw new UnclearTurns('the {% generation %} blocks are outside of a loop over the messages');
        start = isLearned(piece.turn) ? text.length : undefined;
      } else if (part !== end) text += part;
      else if (start !== undefined) {
        if (text.length > start) spans.push([start, text.length]);
        start = undefined;
      }
    }
  return { text, spans };
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
  prompt: string,
  text: string,
  regions: ReadonlyMap<number, Region>,
  messages: readonly Message[],
  pieces: readonly Placed[],
): Span[] {
  if (region.some(({ source }) => source === SEVERAL)) {
    throw new UnclearTurns('the template joins several messages in one text');
  }
  const start = startOf(region, i, prompt);
  const lastText = region.findLast(({ source }) => source !== NONE);
  const tailStart = Math.max(start, lastText?.stop ?? start);
  const regionStop = region.at(-1)!.stop;
  let stop = tailStart + withoutNextPrompt(text.slice(tailStart, regionStop), prompt).trimEnd().length;
  const spans: Span[] = [];
  if (stop === tailStart && lastText && belongsTo(i, lastText)) {
    const ending = endingAfter(regionStop, text, regions, messages, pieces, prompt);
    if (ending > 0) stop = regionStop + ending;
  }
  for (const piece of region) {
    if (!belongsTo(i, piece)) continue;
    extend(spans, Math.max(piece.start, start), Math.min(piece.stop, stop));
  }
  if (stop > regionStop) extend(spans, regionStop, stop);
  return spans;
}

/** Adds a span, joined to the one before where nothing is between them. */
function extend(spans: Span[], start: number, stop: number): void {
  if (stop <= start) return;
  const last = spans.at(-1);
  if (last && last[1] === start) last[1] = stop;
  else spans.push([start, stop]);
}

/** The tail of a turn without the beginning of the next one, which some templates print at once. */
function withoutNextPrompt(tail: string, prompt: string): string {
  const next = prompt.trim();
  const at = next === '' ? -1 : tail.lastIndexOf(next);
  return at >= 0 && isBlank(tail.slice(at + next.length)) ? tail.slice(0, at) : tail;
}

/**
 * Where the generation prompt ends in a region: the model writes what follows. The turn may begin within the prompt (another
 * turn may be closed first), and the prompt may go on where the turn does not (an opened `<think>`); it ends before the text of
 * the message, unless all of the prompt is there.
 * @throws UnclearTurns where the turn begins otherwise
 */
function startOf(region: Region, i: number, prompt: string): number {
  const text = join(region);
  const first = region[0]!.start;
  const content = region.find(({ source }) => source !== NONE);
  const headerLength = content ? content.start - first : text.length;
  const blank = Math.min(text.length - text.trimStart().length, headerLength);
  const body = text.slice(blank);
  let longest = 0;
  for (let from = 0; from < prompt.length; from++) {
    if (from > 0 && (headerLength === blank || !isTokenStart(prompt, from))) continue;
    const rest = prompt.slice(from);
    const common = commonPrefixLength(body, rest);
    longest = Math.max(
      longest,
      common === rest.length ? common : wholeTokens(body, rest, Math.min(common, headerLength - blank)),
    );
  }
  if (longest > 0) return first + blank + longest;
  const header = text.slice(0, headerLength);
  if (isBlank(header)) return isBlank(prompt) && text.startsWith(prompt) ? first + prompt.length : first;
  const at = isBlank(prompt) ? -1 : header.lastIndexOf(prompt.trim());
  if (at >= 0) return first + at + prompt.trim().length;
  if (isBlank(prompt)) return first;
  throw new UnclearTurns(
    `the turn of message ${i} begins with ${JSON.stringify(header.slice(0, 60))}, and the generation prompt is ${JSON.stringify(prompt.slice(0, 60))}`,
  );
}

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

/** How much after the region of a turn that prints no end is its end: what the next turn prints before its own header. */
function endingAfter(
  from: number,
  text: string,
  regions: ReadonlyMap<number, Region>,
  messages: readonly Message[],
  pieces: readonly Placed[],
  prompt: string,
): number {
  const next = pieces.find(({ start }) => start === from);
  if (!next) return 0;
  if (next.turn === NONE) return withoutNextPrompt(text.slice(from), prompt).trimEnd().length;
  const role = messages[next.turn]!.role;
  const reference = messages.findIndex(
    (m, j) => m.role === role && regions.has(j) && messages[j - 1]?.role !== 'assistant',
  );
  if (reference < 0) return 0;
  const [header, own] = [headerOf(regions.get(next.turn)!), headerOf(regions.get(reference)!)];
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
 * The generation prompt of a turn of the assistant. It depends on who spoke before, so it is rendered once for each of these.
 */
function promptFinder(trace: Trace, messages: readonly Message[]): (i: number) => string {
  const byRole = new Map<string, string>();
  const roleBefore = (i: number) => messages[i - 1]?.role ?? '';
  return (i) => {
    const role = roleBefore(i);
    const known = byRole.get(role);
    if (known !== undefined) return known;
    for (let j = i; j < messages.length; j++) {
      if (j > 0 && messages[j]!.role === 'assistant' && roleBefore(j) === role) {
        const prompt = attempt(() => promptAfter(trace, messages.slice(0, j)));
        if (prompt !== undefined) {
          byRole.set(role, prompt);
          return prompt;
        }
      }
    }
    const other = byRole.values().next().value;
    if (other !== undefined) return other;
    throw new UnclearTurns('the template rejects every beginning of the conversation');
  };
}

/** What follows a conversation when an answer is to be generated. */
function promptAfter(trace: Trace, messages: readonly Message[]): string {
  const pieces = trace(messages, true);
  const lastTurn = pieces.findLastIndex(({ turn, source }) => turn !== NONE || source !== NONE);
  const afterTurns = join(pieces.slice(lastTurn + 1));
  const [open, closed] = [join(pieces), join(attempt(() => trace(messages, false)) ?? [])];
  if (closed === '') return afterTurns;
  let added = open.length;
  if (open.startsWith(closed)) added = closed.length;
  else {
    const common = commonPrefixLength(open, closed);
    added = place(pieces).find(({ stop }) => stop > common)?.start ?? open.length;
  }
  const difference = open.slice(added);
  return difference.length > afterTurns.length ? difference : afterTurns;
}

/** The result of `act`, or undefined when it throws: a template may reject an incomplete conversation. */
function attempt<T>(act: () => T): T | undefined {
  try {
    return act();
  } catch {
    return undefined;
  }
}

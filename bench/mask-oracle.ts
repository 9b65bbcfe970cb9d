/**
 * Says what is wrong with the spans of a conversation. It knows the texts of the messages, which are unique, and renderings of
 * conversations, and nothing of how the spans were found.
 */
import type { ChatTemplate, Message } from '../src/data/index.ts';
import { type Conversation, textEnds } from './mask-conversations.ts';

type Span = readonly [start: number, stop: number];
interface Learned {
  readonly text: string;
  readonly spans: readonly Span[];
}

const parts = ['reasoning', 'text', 'call'] as const;

/** Where the texts of message i begin and end in a rendering, as one range; undefined where none is printed. */
function rangeOf(text: string, i: number): Span | undefined {
  const ends = parts.flatMap((part) => textEnds(i, part));
  const found = ends.flatMap((end) =>
    text.includes(end) ? [[text.indexOf(end), text.lastIndexOf(end) + end.length]] : [],
  );
  if (found.length === 0) return undefined;
  return [Math.min(...found.map(([from]) => from!)), Math.max(...found.map(([, to]) => to!))];
}

const covered = (spans: readonly Span[], at: number) => spans.some(([from, to]) => from <= at && at < to);

/** What ends a turn in the templates of published models; a second end token may follow at once. */
const turnEnd = new RegExp(
  `(?:${[
    '<[|｜](?:im_end|eom|eot_id|eom_id|eot|end|return|call|calls|END_OF_TURN_TOKEN|end▁of▁sentence|end_of_text|message_sep|role_end|end_of_msg|assistant_end|hy_eos:opensource)[|｜]>',
    '<(?:end_of_turn|turn\\||end_of_sentence|SPECIAL_12|end_of_utterance)>',
    '<turn\\|>',
    '<seed:eos>',
    '<\\|eos\\|>',
    '<sep>',
    '\\[e~\\[',
    '</assistant>',
    '<EOS>',
  ].join('|')})(?:\\n?<EOS>)?`,
);

/** The first fault of the spans, or undefined where they are right. */
export function faultOf(
  { messages, tools }: Conversation,
  { text, spans }: Learned,
  chat: ChatTemplate,
  marks?: Learned,
): string | undefined {
  if (text !== chat.render(messages, { tools })) return 'the text is not the rendering';
  if (spans.some(([from, to], n) => from >= to || from < (spans[n - 1]?.[1] ?? 0))) return 'spans are empty or overlap';
  const ranges = messages.map((_, i) => rangeOf(text, i));
  const inText = messages.flatMap((_, i) => (ranges[i] ? [i] : [])).sort((a, b) => ranges[a]![0] - ranges[b]![0]);
  const prompts: string[] = [];
  for (const [n, i] of inText.entries()) {
    const [from, to] = ranges[i]!;
    if (messages[i]!.role !== 'assistant') {
      for (let at = from; at < to; at++)
        if (covered(spans, at)) return `text of message ${i} (${messages[i]!.role}) is learned`;
      continue;
    }
    const previous = inText[n - 1];
    let leadStart = previous === undefined ? 0 : ranges[previous]![1];
    if (previous !== undefined && messages[previous]!.role === 'assistant') {
      const ended = turnEnd.exec(text.slice(leadStart, from));
      if (ended) leadStart += ended.index + ended[0].length;
    }
    const prompt = promptBefore(chat, messages.slice(0, i), tools);
    const promptEnd = prompt?.slice(rangeOf(prompt, previous ?? -1)?.[1] ?? 0).trim();
    if (promptEnd) prompts.push(promptEnd);
    const hole = holeIn(text, from, to, spans, ranges, prompts);
    if (hole) return `a part of message ${i} is not learned: ${JSON.stringify(hole)}`;
    const fault = prompt === undefined ? undefined : startFault(text, leadStart, from, spans, prompt, previous);
    const isPrompted = messages[previous ?? 0]!.role === 'user';
    if (fault && (isPrompted || !isHeader(text, leadStart, spans, prompts))) return `message ${i}: ${fault}`;
    const next = inText[n + 1];
    const end = endFault(
      text.slice(to, next === undefined ? undefined : ranges[next]![0]),
      to,
      spans,
      marks?.spans,
      next !== undefined && messages[next]!.role === 'assistant',
    );
    if (end) return `message ${i}: ${end}`;
  }
  return undefined;
}

/** What is not learned of a turn, except another message (the answer of a tool), or a header after the end of text. */
function holeIn(
  text: string,
  from: number,
  to: number,
  spans: readonly Span[],
  ranges: readonly (Span | undefined)[],
  prompts: readonly string[],
): string | undefined {
  for (let at = from; at < to; at++) {
    if (covered(spans, at)) continue;
    let stop = at;
    while (stop < to && !covered(spans, stop)) stop++;
    const isOther = ranges.some((range) => range && range[0] >= at && range[1] <= stop);
    const isNewTurn =
      text.slice(0, at).endsWith('<｜end▁of▁sentence｜>') && prompts.some((p) => p.startsWith(text.slice(at, stop)));
    if (!isOther && !isNewTurn) return text.slice(at, stop);
    at = stop;
  }
  return undefined;
}

function promptBefore(
  chat: ChatTemplate,
  before: readonly Message[],
  tools: Conversation['tools'],
): string | undefined {
  try {
    return chat.render(before, { tools, addGenerationPrompt: true });
  } catch {
    return undefined; // the template rejects the beginning of the conversation
  }
}

/** What is learned before the text of a turn is what the prompt does not give. */
function startFault(
  text: string,
  leadStart: number,
  from: number,
  spans: readonly Span[],
  prompt: string,
  previous: number | undefined,
): string | undefined {
  let start = from;
  while (start > leadStart && covered(spans, start - 1)) start--;
  if (text.startsWith(prompt) && prompt.length <= from && prompt.length >= leadStart) {
    return start === prompt.length
      ? undefined
      : `learned from ${JSON.stringify(text.slice(start, from))}, the prompt leaves ${JSON.stringify(text.slice(prompt.length, from))}`;
  }
  const range = previous === undefined ? undefined : rangeOf(prompt, previous);
  const given = text.slice(leadStart, start).trim();
  const tail = prompt.slice(range?.[1] ?? 0);
  const last = given.split(/(?=[<[])/).at(-1)!;
  if (!tail.includes(last))
    return `${JSON.stringify(last)} is not learned and not in the prompt ${JSON.stringify(tail)}`;
  const rest = tail.slice(tail.lastIndexOf(last) + last.length).trim();
  return rest !== '' && text.slice(start).trimStart().startsWith(rest)
    ? `the prompt gives ${JSON.stringify(rest)}, which is learned`
    : undefined;
}

const nextHeader =
  /<[|｜]?(?:im_start|start|start_header_id|START_OF_TURN_TOKEN|user|User|Assistant)\b|\[INST\]|<start_of_turn>|USER:/;

/** Whether what is not learned at the start of a turn is the header of an answer to the user: some templates prompt for no other. */
function isHeader(text: string, leadStart: number, spans: readonly Span[], prompts: readonly string[]): boolean {
  let start = leadStart;
  while (start < text.length && !covered(spans, start)) start++;
  const last = text
    .slice(leadStart, start)
    .trim()
    .split(/(?=[<[])/)
    .at(-1)!;
  return last !== '' && prompts.some((prompt) => prompt.includes(last) || last.endsWith(prompt));
}

/** What is learned after the text of a turn is all up to its end token. */
function endFault(
  tail: string,
  to: number,
  spans: readonly Span[],
  marked: readonly Span[] | undefined,
  beforeAnswer: boolean,
): string | undefined {
  let learned = 0;
  while (learned < tail.length && covered(spans, to + learned)) learned++;
  const got = tail.slice(0, learned);
  if (marked && [...got].every((_, n) => covered(marked, to + n))) return undefined; // it is compared with the marks
  const end = turnEnd.exec(tail.slice(0, nextHeader.exec(tail)?.index));
  const expected = end ? tail.slice(0, end.index + end[0].length) : undefined;
  if (beforeAnswer && expected !== undefined && got.startsWith(expected)) return undefined; // the next answer follows at once
  if (expected !== undefined && got !== expected && `${got}\n<EOS>` !== expected) {
    return `its end is learned as ${JSON.stringify(got)}, and is ${JSON.stringify(expected)} of ${JSON.stringify(tail)}`;
  }
  return expected === undefined && nextHeader.test(got)
    ? `the next header is learned: ${JSON.stringify(got)}`
    : undefined;
}

/**
 * Where the spans that a template marks and those found without its marks differ: the found ones have nothing but marked text,
 * and lack of it only white space and what stands before a turn's texts, which the prompt may give.
 */
export function differenceFromMarks({ messages }: Conversation, found: Learned, marked: Learned): string | undefined {
  const { text } = found;
  if (text !== marked.text) return 'the text differs from the one with marks';
  const ranges = messages.map((_, i) => rangeOf(text, i));
  for (let at = 0; at < text.length; at++) {
    const [isFound, isMarked] = [covered(found.spans, at), covered(marked.spans, at)];
    if (isFound && !isMarked && text[at]!.trim() !== '')
      return `learned and not marked: ${JSON.stringify(text.slice(at, at + 20))}`;
    if (!isMarked || isFound || text[at]!.trim() === '') continue;
    const before = ranges.findLastIndex((range) => range && range[1] <= at);
    const isInText = ranges.some((range) => range && range[0] <= at && at < range[1]);
    const isTail = messages[before]?.role === 'assistant' && !turnEnd.test(text.slice(ranges[before]![1], at));
    if (isInText || isTail) return `marked and not learned: ${JSON.stringify(text.slice(at, at + 20))}`;
  }
  return undefined;
}

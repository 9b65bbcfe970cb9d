import type { Message } from '../example.ts';

/** Renders a conversation, with or without the generation prompt; throws when the template rejects it. */
export type Render = (messages: readonly Message[], addGenerationPrompt: boolean) => string;
type Span = [start: number, stop: number];

/** Replaces the content of an assistant turn, to find where the template prints it. */
const PROBE = '\uE010graft\uE011';
/** The longest and shortest end of the generation prompt that is searched for before the content, in UTF-16 units. */
const PROMPT_TAIL = { longest: 32, shortest: 4 };

/**
 * The span of the assistant's message `i` in `text`, the rendering of all messages: from the end of the generation prompt to
 * the end-of-turn token, without white space after it. Undefined when it cannot be determined.
 */
export const spanOfTurn = (render: Render, messages: readonly Message[], i: number, text: string): Span | undefined =>
  spanByPrefixes(render, messages, i, text) ??
  probesOf(messages[i]!)
    .map((probe) => spanByProbe(render, messages, i, text, probe))
    .find((span) => span !== undefined);

/** The span as what the turn adds to the rendering of the messages before it with the generation prompt. */
function spanByPrefixes(render: Render, messages: readonly Message[], i: number, text: string): Span | undefined {
  const before = attempt(() => render(messages.slice(0, i), true));
  const through = attempt(() => render(messages.slice(0, i + 1), false))?.trimEnd();
  if (before === undefined || !through?.startsWith(before) || !text.startsWith(through)) return undefined;
  return [before.length, through.length];
}

/**
 * The span by rendering a probe instead of the content, around which the text stays the same. For templates that render a turn
 * differently when it is the last one (the system prompt in the last user turn, reasoning only there, an end token after it).
 */
function spanByProbe(
  render: Render,
  messages: readonly Message[],
  i: number,
  text: string,
  probe: Message,
): Span | undefined {
  const probed = messages.with(i, probe);
  const surroundings = splitAtProbe(attempt(() => render(probed, false)));
  if (!surroundings) return undefined;
  const [before, after] = surroundings;
  if (!text.startsWith(before) || !text.endsWith(after) || before.length + after.length > text.length) return undefined;

  // The end of the turn is common to its renderings here, as the last turn, and before a generation prompt.
  let ending = after;
  for (const addGenerationPrompt of [false, true]) {
    const asLast = splitAtProbe(attempt(() => render(probed.slice(0, i + 1), addGenerationPrompt)));
    if (asLast) ending = ending.slice(0, commonPrefixLength(ending, asLast[1]));
  }
  const nextToken = ending.lastIndexOf('<');
  if (nextToken > ending.lastIndexOf('>')) ending = ending.slice(0, nextToken); // the beginning of the next turn's token
  return [startOf(render, messages, i, before), text.length - after.length + ending.trimEnd().length];
}

/** The end of the generation prompt of turn `i` in `before`, the text before its content. */
function startOf(render: Render, messages: readonly Message[], i: number, before: string): number {
  const prompt = attempt(() => render(messages.slice(0, i), true)) ?? '';
  const question = messages[i - 1]?.content.trim();
  for (let length = Math.min(PROMPT_TAIL.longest, prompt.length); length >= PROMPT_TAIL.shortest; length--) {
    const at = before.lastIndexOf(prompt.slice(-length));
    if (at < 0) continue;
    const start = at + length;
    return question && before.includes(question, start) ? before.length : start;
  }
  return before.length;
}

/** The message with the probe as its content, or as the name of the function that it calls; the likelier one first. */
function probesOf(message: Message): Message[] {
  const inContent = { ...message, content: PROBE };
  const calls = message.tool_calls;
  if (!Array.isArray(calls) || calls.length === 0) return [inContent];
  const [first, ...rest] = structuredClone(calls) as (Record<string, unknown> | undefined)[];
  const call = first?.function ?? first;
  if (typeof call !== 'object' || call === null) return [inContent];
  (call as Record<string, unknown>).name = PROBE;
  const inCall = { ...message, tool_calls: [first, ...rest] };
  return message.content.trim() === '' ? [inCall, inContent] : [inContent, inCall];
}

/** The text before and after the probe; undefined unless it is printed exactly once. */
function splitAtProbe(rendered: string | undefined): [before: string, after: string] | undefined {
  const parts = rendered?.split(PROBE);
  return parts?.length === 2 ? [parts[0]!, parts[1]!] : undefined;
}

function commonPrefixLength(a: string, b: string): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

/** The result of `act`, or undefined when it throws: a template may reject an incomplete conversation. */
function attempt<T>(act: () => T): T | undefined {
  try {
    return act();
  } catch {
    return undefined;
  }
}

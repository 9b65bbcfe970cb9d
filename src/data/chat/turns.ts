import type { Message } from '../example.ts';

/** Renders a conversation, with or without the prompt for the assistant's next turn; throws when the template refuses. */
export type Render = (messages: readonly Message[], addGenerationPrompt: boolean) => string;
type Span = [start: number, stop: number];

/** Stands for what the assistant says, to see where the template puts it. */
const PROBE = '\uE010graft\uE011';
/** So much of the prompt for a turn, at most and at least, is looked for before what is said, in UTF-16 units. */
const TAIL = { most: 32, least: 4 };

/**
 * Where in `text`, the rendering of all messages, the assistant's message `i` stands: from the end of the prompt for it to
 * its end-of-turn token; white space after that is left out. Undefined when it cannot be told.
 */
export const spanOfTurn = (render: Render, messages: readonly Message[], i: number, text: string): Span | undefined =>
  byPrefixes(render, messages, i, text) ??
  probes(messages[i]!)
    .map((probe) => byProbe(render, messages, i, text, probe))
    .find((span) => span !== undefined);

/** A turn is what rendering it adds to the rendering of all before it with the prompt for it. */
function byPrefixes(render: Render, messages: readonly Message[], i: number, text: string): Span | undefined {
  const before = attempt(() => render(messages.slice(0, i), true));
  const through = attempt(() => render(messages.slice(0, i + 1), false))?.trimEnd();
  if (before === undefined || !through?.startsWith(before) || !text.startsWith(through)) return undefined;
  return [before.length, through.length];
}

/**
 * Templates that render a turn otherwise when it is the last one (the system prompt at the last user's turn, reasoning only
 * there, an end token after it) are asked with something else in place of what is said: around it the text stays.
 */
function byProbe(
  render: Render,
  messages: readonly Message[],
  i: number,
  text: string,
  probe: Message,
): Span | undefined {
  const probed = messages.with(i, probe);
  const whole = around(attempt(() => render(probed, false)));
  if (!whole) return undefined;
  const [before, after] = whole;
  if (!text.startsWith(before) || !text.endsWith(after) || before.length + after.length > text.length) return undefined;

  // What belongs to the turn after what is said: common to the turn in its place, at the end, and before another prompt.
  let ending = after;
  for (const generate of [false, true]) {
    const alone = around(attempt(() => render(probed.slice(0, i + 1), generate)));
    if (alone) ending = ending.slice(0, commonLength(ending, alone[1]));
  }
  const cut = ending.lastIndexOf('<');
  if (cut > ending.lastIndexOf('>')) ending = ending.slice(0, cut); // the next turn's token, begun
  return [startOf(render, messages, i, before), text.length - after.length + ending.trimEnd().length];
}

/** The end of the prompt for turn `i` within the text before what is said in it. */
function startOf(render: Render, messages: readonly Message[], i: number, before: string): number {
  const prompt = attempt(() => render(messages.slice(0, i), true)) ?? '';
  const asked = messages[i - 1]?.content.trim();
  for (let length = Math.min(TAIL.most, prompt.length); length >= TAIL.least; length--) {
    const at = before.lastIndexOf(prompt.slice(-length));
    if (at < 0) continue;
    const start = at + length;
    return asked && before.includes(asked, start) ? before.length : start;
  }
  return before.length;
}

/** The message with the probe as its content, or as the name of the function that it calls. */
function probes(message: Message): Message[] {
  const said = { ...message, content: PROBE };
  const calls = message.tool_calls;
  if (!Array.isArray(calls) || calls.length === 0) return [said];
  const [first, ...rest] = structuredClone(calls) as (Record<string, unknown> | undefined)[];
  const call = first?.function ?? first;
  if (typeof call !== 'object' || call === null) return [said];
  (call as Record<string, unknown>).name = PROBE;
  const called = { ...message, tool_calls: [first, ...rest] };
  return message.content.trim() === '' ? [called, said] : [said, called];
}

function around(rendered: string | undefined): [before: string, after: string] | undefined {
  const parts = rendered?.split(PROBE);
  return parts?.length === 2 ? [parts[0]!, parts[1]!] : undefined;
}

function commonLength(a: string, b: string): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

/** What `make` gives, or undefined when it throws: a template may refuse a conversation that stops in the middle. */
function attempt<T>(make: () => T): T | undefined {
  try {
    return make();
  } catch {
    return undefined;
  }
}

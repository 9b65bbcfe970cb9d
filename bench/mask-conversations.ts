import type { Message } from '../src/data/index.ts';

export interface Conversation {
  readonly name: string;
  readonly messages: readonly Message[];
  readonly tools?: readonly unknown[];
}

/** The two ends of a text of message i; no other text contains them. */
export const textEnds = (i: number, part: 'text' | 'reasoning' | 'call') => {
  const letter = { text: 't', reasoning: 'r', call: 'c' }[part];
  return [`qa${letter}${i}x`, `qz${letter}${i}x`] as const;
};
const between = (i: number, part: 'text' | 'reasoning' | 'call', inner: string) => textEnds(i, part).join(inner);

const functionNames = ['get_weather', 'find_book'];
const tools = functionNames.map((name) => ({
  type: 'function',
  function: {
    name,
    description: `Returns what ${name} says.`,
    parameters: {
      type: 'object',
      properties: { place: { type: 'string', description: 'Where' } },
      required: ['place'],
    },
  },
}));

/** A turn: who speaks, then what it has: r reasoning, t text, e empty text, c and cc calls of functions, i reasoning in its text. */
type Turn = `${'s' | 'u' | 'a' | 'o'}${string}`;
const roles = { s: 'system', u: 'user', a: 'assistant', o: 'tool' } as const;

function messagesOf(turns: readonly Turn[], inner: string): Message[] {
  let calls = 0;
  let answered = 0;
  return turns.map((turn, i) => {
    const [who, ...has] = turn as unknown as [keyof typeof roles, ...string[]];
    const text = between(i, 'text', inner);
    if (who === 'o') {
      const id = answered++;
      return { role: 'tool', content: text, tool_call_id: `call0000${id}`, name: functionNames[id % 2]! };
    }
    if (who !== 'a') return { role: roles[who], content: text };
    const tool_calls = has
      .filter((c) => c === 'c')
      .map((_, n) => {
        const id = calls++;
        const place = textEnds(i, 'call').join(`${inner}${n}`);
        return {
          id: `call0000${id}`,
          type: 'function',
          function: { name: functionNames[id % 2]!, arguments: { place } },
        };
      });
    const reasoning = between(i, 'reasoning', inner);
    return {
      role: 'assistant',
      content: has.includes('e') ? '' : has.includes('i') ? `<think>\n${reasoning}\n</think>\n\n${text}` : text,
      ...(has.includes('r') && { reasoning_content: reasoning }),
      ...(tool_calls.length > 0 && { tool_calls }),
    };
  });
}

const shapes: Readonly<Record<string, string>> = {
  'one answer': 'u a',
  'two answers': 'u a u a',
  'system prompt': 's u a u a',
  'last turn by the user': 's u a u',
  'many turns': 's u a u a u a u a u a u a u a u a',
  'empty answer': 'u ae u a',
  'empty answer last': 'u a u ae',
  reasoning: 'u ar u ar',
  'reasoning once': 's u a u ar u a',
  'reasoning in the text': 'u ai u ai',
  call: 'u aec o a',
  'call after a system prompt': 's u aec o a u a',
  'text and call': 'u ac o a u a',
  'two calls': 'u aecc o o a u a',
  'calls in turn': 'u aec o aec o a',
  'call last': 'u a u aec',
  'two calls last': 's u aecc',
  'answer of a tool last': 'u aec o',
  'reasoning and call': 'u aerc o ar u a',
  'reasoning, text and two calls': 'u arcc o o ar',
  'two answers in a row': 'u a a u a',
};
const inners: Readonly<Record<string, string>> = {
  'plain words': ' some words ',
  'line breaks and white space': '\n\n  a line\n\tanother  \n ',
  signs: ' <b>&amp;</b> "quoted" \'it\' \\n {x: [1]} € 😀 ',
  'what others said': ' qat0 some words Hello assistant user ',
};

/** Conversations of all shapes, each with several texts: 84 in all. */
export const conversations: readonly Conversation[] = Object.entries(shapes).flatMap(([shape, turns]) =>
  Object.entries(inners).map(([kind, inner]) => ({
    name: `${shape}, ${kind}`,
    messages: messagesOf(turns.split(' ') as Turn[], inner),
    ...((turns.includes('c') || turns.includes('o')) && { tools }),
  })),
);

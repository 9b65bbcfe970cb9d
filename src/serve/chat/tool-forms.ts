/** How families write calls of tools. */
import type { Tokenizer } from '../../data/index.ts';

/** A call that a model has written. */
export interface WrittenCall {
  readonly name: string;
  /** JSON. */
  readonly arguments: string;
}

/** A way to write calls. */
export interface ToolForm {
  readonly name: 'hermes' | 'llama3' | 'mistral';
  /** Begins the calls; what stands before it is the answer's text. Undefined: an answer is calls from its first character on. */
  readonly begin: string | undefined;
  /** Whether the template of a model asks for this form. */
  readonly isOf: (template: string) => boolean;
  /** The calls of a text after `begin`; undefined where it has none. */
  readonly read: (text: string) => readonly WrittenCall[] | undefined;
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** A call of the object that describes it. Arguments are an object, or already JSON. */
function callOf(value: unknown): WrittenCall | undefined {
  if (!isObject(value) || typeof value.name !== 'string') return undefined;
  const args = value.arguments ?? value.parameters ?? {};
  if (isObject(args)) return { name: value.name, arguments: JSON.stringify(args) };
  return typeof args === 'string' && isObject(parsed(args)) ? { name: value.name, arguments: args } : undefined;
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Where the JSON value that begins at `start` ends, or -1 where it does not. */
function endOfValue(text: string, start: number): number {
  let depth = 0;
  let inString = false;
  for (let i = start; i < text.length; i++) {
    const c = text[i]!;
    if (inString) {
      if (c === '\\') i++;
      else if (c === '"') inString = false;
    } else if (c === '"') inString = true;
    else if (c === '{' || c === '[') depth++;
    else if ((c === '}' || c === ']') && --depth === 0) return i + 1;
  }
  return -1;
}

/** Calls of which all are known, or nothing. */
const complete = (calls: readonly (WrittenCall | undefined)[]): readonly WrittenCall[] | undefined =>
  calls.length > 0 && calls.every((call) => call !== undefined) ? calls : undefined;

/** JSON values that follow one another, with only white space and `between` among them. */
function valuesIn(text: string, between: RegExp): unknown[] | undefined {
  const values: unknown[] = [];
  for (let at = 0; ; ) {
    at += between.exec(text.slice(at))![0].length;
    if (at === text.length) return values;
    const end = text[at] === '{' || text[at] === '[' ? endOfValue(text, at) : -1;
    if (end < 0) return undefined;
    values.push(parsed(text.slice(at, end)));
    at = end;
  }
}

/** NousResearch's Hermes and Qwen: `<tool_call>{"name": …, "arguments": …}</tool_call>`, once for each call. */
const hermes: ToolForm = {
  name: 'hermes',
  begin: '<tool_call>',
  isOf: (template) => template.includes('<tool_call>'),
  read(text) {
    const pieces = text.split('<tool_call>').map((piece) => piece.split('</tool_call>'));
    if (pieces.some(([, after = '', ...more]) => after.trim() !== '' || more.length > 0)) return undefined;
    return complete(pieces.map(([call]) => callOf(parsed(call!))));
  },
};

/** Mistral: `[TOOL_CALLS][{"name": …, "arguments": …}]`, and since tokenizer v11 `[TOOL_CALLS]name[ARGS]{…}`. */
const mistral: ToolForm = {
  name: 'mistral',
  begin: '[TOOL_CALLS]',
  isOf: (template) => template.includes('[TOOL_CALLS]'),
  read(text) {
    const trimmed = text.trim();
    if (trimmed.startsWith('[{')) {
      const list = parsed(trimmed);
      return Array.isArray(list) ? complete(list.map(callOf)) : undefined;
    }
    const calls: (WrittenCall | undefined)[] = [];
    for (let at = 0; at < trimmed.length; ) {
      const [head, name] =
        /^(?:\[TOOL_CALLS\])?\s*([\w.-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*/.exec(trimmed.slice(at)) ?? [];
      if (head === undefined) return undefined;
      const start = at + head.length;
      const end = trimmed[start] === '{' ? endOfValue(trimmed, start) : -1;
      if (end < 0) return undefined;
      calls.push(callOf({ name, arguments: parsed(trimmed.slice(start, end)) }));
      at = end + /^\s*/.exec(trimmed.slice(end))![0].length;
    }
    return complete(calls);
  },
};

/** Llama 3.1 to 3.3: the answer is `{"name": …, "parameters": …}`, several divided by `;`, with `<|python_tag|>` before it or without. */
const llama3: ToolForm = {
  name: 'llama3',
  begin: undefined,
  isOf: (template) => /"parameters"|<\|python_tag\|>|ipython/.test(template),
  read(text) {
    const values = valuesIn(text.replace(/^\s*<\|python_tag\|>/, ''), /^[\s;]*/);
    return values && complete(values.map(callOf));
  },
};

const forms: readonly ToolForm[] = [hermes, mistral, llama3];

/** The form in which a model with this template writes calls; Llama 3's, plain JSON, where the template does not tell. */
export const toolFormOf = (template: string): ToolForm => forms.find(({ isOf }) => isOf(template)) ?? llama3;

/** The id of the token that is the whole beginning of calls, where that is special and so never in the text. */
export const beginId = (form: ToolForm, tokenizer: Tokenizer): number | undefined => {
  const id = form.begin === undefined ? undefined : tokenizer.tokenToId(form.begin);
  return id !== undefined && tokenizer.isSpecial(id) ? id : undefined;
};

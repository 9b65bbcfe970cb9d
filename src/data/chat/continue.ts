import type { Message } from '../example.ts';
import { strip } from '../jinja/index.ts';

/** Marks where the text to continue ends; its last space tells whether the template keeps the white space there. */
const TAG = 'CONTINUE_FINAL_MESSAGE_TAG ';

/** A text that a field of the last message has, or the last block of text in it. */
function textOf(value: unknown): { text: string; marked: unknown } | undefined {
  if (typeof value === 'string') return { text: value, marked: value + TAG };
  if (!Array.isArray(value)) return undefined;
  const at = value.findLastIndex((block) => typeof block === 'object' && block !== null && 'text' in block);
  const { text } = (value[at] ?? {}) as { text?: unknown };
  return typeof text === 'string'
    ? { text, marked: value.with(at, { ...(value[at] as object), text: text + TAG }) }
    : undefined;
}

/**
 * Renders a conversation up to the end of the text of its last message, so that a model goes on with it. Source:
 * `continue_final_message` in `render_jinja_template` of transformers.
 * @param fields that the text stands in: one, or all names of the reasoning
 * @param names whether the template names a field
 * @param render the conversation with the text marked
 * @throws Error where the message has no such text, or the template does not print it
 */
export function renderContinued(
  messages: readonly Message[],
  fields: readonly string[],
  names: (field: string) => boolean,
  render: (messages: readonly Message[]) => string,
): string {
  const last = messages.at(-1);
  const [field] = fields as [string];
  const found = last && fields.map((name) => textOf(last[name])).find((text) => text !== undefined);
  if (!last || !found) throw new Error(`the last message has no text to continue in '${field}'`);
  if (!fields.some(names)) throw new Error(`the template does not print '${field}', which is to be continued`);
  const marked = Object.fromEntries(
    fields.flatMap((name) => {
      const text = textOf(last[name]);
      return text?.text === found.text ? [[name, text.marked]] : [];
    }),
  );
  const rendered = render([...messages.slice(0, -1), { ...last, ...marked }]);
  const at = rendered.lastIndexOf(TAG.trim());
  if (at < 0 || !rendered.includes(strip(found.text, undefined))) {
    throw new Error('the template does not print the last message, which is to be continued');
  }
  const before = rendered.slice(0, at);
  return rendered.startsWith(TAG, at) ? before : strip(before, undefined, false, true);
}

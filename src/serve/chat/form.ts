import { badRequest } from '../errors.ts';
import type { SchemaGrammars } from '../grammar/index.ts';
import type { Limits } from '../limits.ts';
import type { ChatFields, Tool } from '../wire/index.ts';
import type { WrittenCall } from './tool-forms.ts';

/** What form the answers to a conversation have. */
export interface AnswerForm {
  /** The tools that the model is told of; undefined for none. */
  readonly tools: readonly Tool[] | undefined;
  /** free: text; calls: text or calls, as the model writes them; forced: the JSON of `readForced` and nothing else. */
  readonly kind: 'free' | 'calls' | 'forced';
  /** EBNF that answers follow. */
  readonly grammar: string | undefined;
  /** The calls that an answer of the kind `forced` makes; undefined where it was cut. */
  readonly readForced: (text: string) => readonly WrittenCall[] | undefined;
}

const parametersOf = ({ function: { parameters } }: Tool) => parameters ?? { type: 'object' };

/** @throws RequestError 400 for fields that do not go together, and schemas that cannot be followed */
export async function answerForm(
  { tools, tool_choice: choice, response_format: format, parallel_tool_calls: parallel }: ChatFields,
  grammars: SchemaGrammars,
  limits: Limits,
): Promise<AnswerForm> {
  if (!tools || tools.length === 0) {
    if (choice !== undefined && choice !== 'none' && choice !== 'auto')
      throw badRequest("'tool_choice' needs 'tools'.", 'tool_choice', 'invalid');
    return { tools: undefined, kind: 'free', grammar: await grammarOf(format, grammars), readForced: () => undefined };
  }
  if (tools.length > limits.tools) throw badRequest(`There are more than ${limits.tools} tools.`, 'tools', 'too_many');
  const names = tools.map((tool) => tool.function.name);
  if (new Set(names).size < names.length) throw badRequest('Two tools have one name.', 'tools', 'invalid');
  if (choice === 'none') {
    return { tools: undefined, kind: 'free', grammar: await grammarOf(format, grammars), readForced: () => undefined };
  }
  if (format && format.type !== 'text')
    throw badRequest(
      "'response_format' and 'tools' do not go together: set 'tool_choice' to none.",
      'response_format',
      'invalid',
    );
  if (choice === 'required') {
    // Every call is one of the tools, with arguments of its schema.
    const definitions = Object.fromEntries(tools.map((tool, i) => [`tool${i}`, withoutReferences(tool, i)]));
    const calls = tools.map((tool, i) => ({
      type: 'object',
      properties: { name: { const: tool.function.name }, arguments: { $ref: `#/$defs/tool${i}` } },
      required: ['name', 'arguments'],
      additionalProperties: false,
    }));
    const schema = {
      $defs: definitions,
      type: 'array',
      items: { anyOf: calls },
      minItems: 1,
      ...(!parallel && { maxItems: 1 }),
    };
    return { tools, kind: 'forced', grammar: await grammars.of(schema, 'tools'), readForced: readCalls };
  }
  if (typeof choice === 'object') {
    const at = names.indexOf(choice.function.name);
    if (at < 0) throw badRequest("'tool_choice' names none of the tools.", 'tool_choice', 'invalid');
    const { name } = tools[at]!.function;
    return {
      tools,
      kind: 'forced',
      grammar: await grammars.of(parametersOf(tools[at]!), `tools[${at}].function.parameters`),
      readForced: (text) => (isJson(text) ? [{ name, arguments: text }] : undefined),
    };
  }
  const strict = tools.findIndex((tool) => tool.function.strict);
  if (strict >= 0) {
    const param = `tools[${strict}].function.strict`;
    throw badRequest(
      `'${param}' holds only where a call is certain: set 'tool_choice' to required, or to a tool.`,
      param,
      'unsupported',
    );
  }
  return { tools, kind: 'calls', grammar: undefined, readForced: () => undefined };
}

async function grammarOf(format: ChatFields['response_format'], grammars: SchemaGrammars): Promise<string | undefined> {
  if (!format || format.type === 'text') return undefined;
  if (format.type === 'json_object') return grammars.of({ type: 'object' }, 'response_format');
  const { schema, strict } = format.json_schema;
  const param = 'response_format.json_schema.schema';
  return grammars.of(schema ?? { type: 'object' }, param, strict ?? false);
}

/** The schema of a tool's arguments, to stand inside another schema. @throws RequestError 400 where it refers to parts of itself */
function withoutReferences(tool: Tool, at: number): object {
  const parameters = parametersOf(tool);
  if (!JSON.stringify(parameters).includes('"$ref"')) return parameters;
  const param = `tools[${at}].function.parameters`;
  throw badRequest(
    `'${param}' uses $ref, which 'tool_choice' required does not allow. Write the schema out.`,
    param,
    'unsupported_schema',
  );
}

const isJson = (text: string): boolean => {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
};

const readCalls = (text: string): readonly WrittenCall[] | undefined => {
  if (!isJson(text)) return undefined;
  const calls = JSON.parse(text) as { readonly name: string; readonly arguments: unknown }[];
  return calls.map((call) => ({ name: call.name, arguments: JSON.stringify(call.arguments) }));
};

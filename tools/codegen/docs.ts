/**
 * Writes docs/recipe.md, docs/recipe.schema.json, docs/compare.schema.json, docs/cli.md and what is generated in docs/methods/ from the recipe's
 * schema, the method registry, the model families and the command tree.
 *   npm run generate
 * A test calls `documents()` and compares.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { Argument, Command, Option } from 'commander';
import { z } from 'zod';
import { packageRoot } from '../../src/base/index.ts';
import { program } from '../../src/cli/main.ts';
import { compareSchema } from '../../src/compare/index.ts';
import { toExample } from '../../src/data/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { methods } from '../../src/methods/index.ts';
import { recipeSchema, severalSchema } from '../../src/train/index.ts';
import { type GeneratedFile, markdownTable as table } from './markdown.ts';
import { messagesPage } from './messages.ts';
import { methodPages } from './methods.ts';

type Schema = z.core.JSONSchema.JSONSchema;

const methodRef = (name: string) => ({ $ref: `#/definitions/${name}` });

/** What a person writes, before defaults, in draft 7. */
function jsonSchemaOf(schema: z.ZodType): Schema {
  return z.toJSONSchema(schema, {
    io: 'input',
    target: 'draft-7',
    override({ jsonSchema }) {
      // zod bounds every whole number by what a double holds; a reader learns nothing from it.
      if (jsonSchema.maximum === Number.MAX_SAFE_INTEGER) delete jsonSchema.maximum;
      if (jsonSchema.minimum === Number.MIN_SAFE_INTEGER) delete jsonSchema.minimum;
    },
  }) as Schema;
}

/**
 * The recipe as JSON Schema, draft 7, which editors understand best; what a person writes, before defaults. Each method is
 * there once, under its name, for the field `method` has one of them or a list.
 */
export function recipeJsonSchema(): Schema {
  const schema = jsonSchemaOf(recipeSchema);
  const { $schema: _, ...tasks } = jsonSchemaOf(severalSchema.shape.tasks);
  const field = schema.properties!.method as Schema;
  const [single, list] = field.anyOf as [Schema, Schema];
  const variants = single.oneOf as Schema[];
  const names = variants.map((variant) => (variant.properties!.type as Schema).const as string);
  if (!isDeepStrictEqual((list.items as Schema).oneOf, variants) || names.length !== Object.keys(methods).length)
    throw new Error('the field method of the recipe is not one method or a list of methods');
  return {
    ...schema,
    title: 'A recipe of Graft',
    required: schema.required!.filter((name) => name !== 'data'),
    properties: {
      ...schema.properties,
      tasks,
      method: {
        description: field.description!,
        anyOf: [methodRef('method'), { ...list, items: methodRef('method') }],
      },
    },
    definitions: {
      method: { oneOf: names.map(methodRef) },
      ...Object.fromEntries(variants.map((variant, i) => [names[i], { title: `method ${names[i]}`, ...variant }])),
    },
  };
}

/** A comparison: a recipe without a method, and the methods to compare. */
export function comparisonJsonSchema(): Schema {
  const recipe = recipeJsonSchema();
  const { method, tasks: _tasks, ...properties } = recipe.properties!;
  const { $schema: _, ...compare } = z.toJSONSchema(compareSchema, { io: 'input', target: 'draft-7' }) as Schema;
  const contender = (compare.properties!.methods as Schema).additionalProperties as Schema;
  contender.properties!.method = method!;
  return {
    ...recipe,
    title: 'A comparison of Graft',
    properties: { ...properties, compare: { description: 'Which methods, and what counts.', ...compare } },
    required: ['model', 'data', 'run'],
  };
}

/** A row of each format, as it stands in a .jsonl file. */
const rows: Readonly<Record<string, string>> = {
  messages: '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}',
  sharegpt: '{"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}',
  'prompt-completion': '{"prompt": "2 + 2 =", "completion": " 4"}',
  alpaca: '{"instruction": "Add the numbers.", "input": "2 and 2", "output": "4"}',
  text: '{"text": "Every token of this is learned."}',
  labelled: '{"text": "WINNER!! Claim now", "text_pair": "optional", "label": "spam"}',
  pairs: '{"text": "A cat sleeps.", "text_pair": "A kitten is resting."}',
  tags: '{"tokens": ["Ada", "was", "in", "Turin"], "tags": ["B-PER", "O", "O", "B-LOC"]}',
  question: '{"question": "Who?", "context": "Ada wrote it.", "answers": {"text": ["Ada"], "answer_start": [0]}}',
  image: '{"image": "digits/0001.png", "label": "7"}',
  tokens: '{"ids": [1, 17, 4], "labels": [-100, 17, 4]}',
  batches: '{"rows": [{"ids": [1, 17, 4]}, {"ids": [1, 9], "labels": [-100, 9]}]}',
};

/** A schema's type in words. */
function typeOf(schema: Schema): string {
  const variants = (schema.anyOf ?? schema.oneOf) as Schema[] | undefined;
  if (variants) return variants.flatMap((one) => (one.type === 'null' ? [] : [typeOf(one)])).join(', or ');
  if (Array.isArray(schema.type)) {
    const types = (schema.type as string[]).filter((type) => type !== 'null');
    return types.map((type) => typeOf({ ...schema, type } as Schema)).join(', or ');
  }
  if (schema.const !== undefined) return `\`${schema.const}\``;
  if (schema.enum) return schema.enum.map((value) => `\`${value}\``).join(' ');
  if (schema.type === 'array') return `list of ${typeOf(schema.items as Schema)}`;
  if (schema.properties) {
    const fields = Object.entries(schema.properties as Record<string, Schema>);
    return `map with ${fields.map(([name, field]) => `\`${name}\` (${typeOf(field)})`).join(', ')}`;
  }
  if (schema.type === 'object') return `map of names to ${typeOf(schema.additionalProperties as Schema)}`;
  if (schema.type === 'boolean') return '`true` `false`';
  if (schema.type === 'string') return 'text';
  if (schema.type !== 'integer' && schema.type !== 'number')
    throw new Error(`docs.ts has no words for ${JSON.stringify(schema)}`);
  const noun = schema.type === 'integer' ? 'whole number' : 'number';
  const bounds = [
    [' >', schema.exclusiveMinimum],
    [' ≥', schema.minimum],
    [' <', schema.exclusiveMaximum],
    [' ≤', schema.maximum],
  ].flatMap(([sign, bound]) => (bound === undefined ? [] : [`${sign} ${bound}`]));
  return noun + bounds.join(',');
}

/** One line for every field of an object. @throws Error where a field has no meaning */
function fieldLines(schema: Schema, path: string, types: Readonly<Record<string, string>> = {}): string[][] {
  return Object.entries(schema.properties as Record<string, Schema>).map(([name, field]) => {
    const at = path + name;
    if (!field.description) throw new Error(`the field ${at} of the recipe has no meaning: give it a .describe`);
    const needed = schema.required?.includes(name) ? 'required' : '';
    const fallback = field.default === undefined ? needed : `\`${JSON.stringify(field.default).replaceAll('"', '')}\``;
    return [`\`${at}\``, types[name] ?? typeOf(field), fallback, field.description];
  });
}

function meaning(schema: Schema, name: string): string {
  if (!schema.description) throw new Error(`${name} of the recipe has no meaning: give it a .describe`);
  return schema.description;
}

/** The fields that every method has, and a section for each with its own and a link to its page. */
function methodSections(definitions: Record<string, Schema>, head: readonly string[]): string[] {
  const names = Object.keys(methods);
  const lines = names.map((name) => fieldLines(definitions[name]!, '', { type: 'name of a method' }));
  const common = lines[0]!.filter((line) =>
    lines.every((others) => others.some((other) => isDeepStrictEqual(line, other))),
  );
  const sections = names.map((name, i) => {
    const about = `${meaning(definitions[name]!, `method ${name}`)} [When and how to use it](methods/${name}.md).`;
    const own = lines[i]!.filter((line) => !common.some((shared) => isDeepStrictEqual(line, shared)));
    const fields = own.length > 0 ? `\n${table(head, own)}\n` : '';
    return `### type: ${name}\n\n${about}\n${fields}`;
  });
  return [`${table(head, common)}\n`, ...sections];
}

function recipePage(schema: Schema): string {
  const head = ['field', 'type', 'default', 'meaning'];
  const fields = Object.entries(schema.properties as Record<string, Schema>);
  const isSection = (field: Schema) => field.properties !== undefined;
  const plain = { ...schema, properties: Object.fromEntries(fields.filter(([, field]) => !isSection(field))) };
  const links = Object.keys(methods).map((name) => `[${name}](#type-${name})`);
  const method = `[one of the methods](#method) below, or a list of them: ${links.join(', ')}`;
  const tasks = 'map of names to the fields [of each](#tasks)';
  const lines = fieldLines(plain, '', { method, tasks });
  const sections = fields.flatMap(([name, field]) => {
    const title = `## ${name}\n\n${meaning(field, name)}`;
    if (name === 'method')
      return [`${title} [How they differ](methods/README.md).\n`, ...methodSections(schema.definitions as never, head)];
    if (name === 'tasks') return [tasksSection(title, field, head)];
    return isSection(field) ? [`${title}\n`, `${table(head, fieldLines(field, `${name}.`))}\n`] : [];
  });
  return [
    '<!-- Generated by tools/codegen/docs.ts from src/train/recipe.ts and src/methods/. Do not edit. -->',
    '# Recipe\n',
    'A recipe is a YAML file that says what `graft train` does; [recipes/](../recipes) has some to copy. Paths in it are relative to',
    "the recipe's own folder; those given by `--set run.dir=out`, which overrides a field, to the working directory. Unknown",
    'fields are refused, with the nearest known one named. Editors check a recipe that begins with',
    '`# yaml-language-server: $schema=…/docs/recipe.schema.json`.\n',
    `${table(head, lines)}\n`,
    ...sections,
    '## Rows\n',
    'What a row of the data looks like in each format. With `auto`, its fields tell which one it is (`batches` has to be named).',
    'CSV and Parquet files have the fields as columns.\n',
    `${table(['format', 'a row'], rowLines(schema))}\n`,
  ].join('\n');
}

/** What is different where a recipe has several tasks. */
function tasksSection(title: string, field: Schema, head: readonly string[]): string {
  const { weight } = (field.additionalProperties as Schema).properties!;
  return `${title}

\`\`\`yaml
method: { type: lora, target_modules: all-linear }
tasks:
  spam: { task: sequence-classification, data: { train: mails.jsonl, held_out: 0.1 } }
  names: { task: token-classification, data: { train: tweets.conll, eval: heldout.conll } }
  talk: { task: causal-lm, data: { train: chats.jsonl }, weight: 2 }
\`\`\`

Each has the fields of a task, \`task\`, \`labels\`, \`class_weights\`, \`temperature\` and \`data\`, and a weight. An epoch is as many steps as all their
rows come to; the best measurement is that with the least mean of the tasks' losses, by their shares of the steps. Each adapter is
complete: the weights that all share, and the head of its task. Rows of the first task are of the number 0, those of the second of 1,
and so on, where they do not say it themselves: [multitask prompts](methods/multitask-prompt.md) go by that. Tasks whose models keep
their layers under other names (embedding and any other) cannot share an adapter, and \`method: full\` makes none.

${table(head, fieldLines({ properties: { weight: weight! } }, 'tasks.NAME.'))}
`;
}

/** @throws Error where the reader does not take a row for what the page says it is, or a format has no row */
function rowLines(schema: Schema): string[][] {
  const formats = ((schema.properties!.data as Schema).properties!.format as Schema).enum as string[];
  return formats
    .filter((format) => format !== 'auto')
    .map((format) => {
      const row = rows[format];
      if (!row) throw new Error(`docs.ts has no sample row of the format ${format}`);
      if (format !== 'batches') toExample({ value: JSON.parse(row), place: `docs.ts, ${format}` }, 'auto');
      return [`\`${format}\``, `\`${row}\``];
    });
}

/** What a command prints behind its options: examples and notes. */
function afterHelp(command: Command): string {
  let text = '';
  const { writeOut } = command.configureOutput();
  command.configureOutput({ writeOut: (piece) => (text += piece) }).outputHelp();
  command.configureOutput({ ...(writeOut && { writeOut }) });
  const at = text.indexOf('\nExamples:\n');
  if (at < 0) throw new Error(`graft ${command.name()} --help has no examples`);
  return text.slice(at + '\nExamples:\n'.length).trimEnd();
}

const described = (command: Command, thing: Argument | Option, name: string) => {
  if (!thing.description) throw new Error(`graft ${command.name()}: ${name} has no description`);
  return thing.description;
};

function commandSection(command: Command): string {
  const usage = `graft ${command.name()} ${command.usage()}`;
  const args = command.registeredArguments.map((argument) => {
    const name = `<${argument.name()}>`;
    return [`\`${name}\``, described(command, argument, name)];
  });
  const options = command.options.map((option) => {
    const choices = option.argChoices ? ` (${option.argChoices.map((choice) => `\`${choice}\``).join(' ')})` : '';
    const fallback = option.defaultValue === undefined ? '' : `\`${option.defaultValue}\``;
    return [
      `\`${option.flags}\``,
      option.mandatory ? 'required' : fallback,
      described(command, option, option.flags) + choices,
    ];
  });
  const lines = afterHelp(command).replaceAll(/^ {2}\$ /gm, '');
  return [
    `## graft ${command.name()}\n\n${command.description()}\n`,
    `    ${usage}\n`,
    ...(args.length > 0 ? [`${table(['argument', 'meaning'], args)}\n`] : []),
    `${table(['option', 'default', 'meaning'], options)}\n`,
    `Examples:\n\n\`\`\`\n${lines}\n\`\`\`\n`,
  ].join('\n');
}

function commandPage(graft: Command): string {
  const [first, ...notes] = afterHelp(graft).split('\n\n');
  return [
    '<!-- Generated by tools/codegen/docs.ts from src/cli/. Do not edit. -->',
    '# Command line\n',
    `${graft.description()} In a checkout, \`npx graft\` runs it.\n`,
    `\`\`\`\n${first!.replaceAll(/^ {2}\$ /gm, '')}\n\`\`\`\n`,
    ...notes.map((note) => `${note}\n`),
    `${table(
      ['command', 'what it does'],
      graft.commands.map((command) => [`[\`${command.name()}\`](#graft-${command.name()})`, command.description()]),
    )}\n`,
    ...graft.commands.map(commandSection),
  ].join('\n');
}

/** Every generated document. */
export async function documents(): Promise<GeneratedFile[]> {
  await startEngine();
  const schema = recipeJsonSchema();
  return [
    { path: 'docs/recipe.md', text: recipePage(schema) },
    { path: 'docs/recipe.schema.json', text: `${JSON.stringify(schema, null, 2)}\n` },
    { path: 'docs/compare.schema.json', text: `${JSON.stringify(comparisonJsonSchema(), null, 2)}\n` },
    { path: 'docs/cli.md', text: commandPage(program()) },
    messagesPage(),
    ...methodPages(),
  ];
}

if (import.meta.main) {
  for (const { path, text } of await documents()) {
    const file = join(packageRoot, path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, text);
    console.log(`${file}: ${text.split('\n').length} lines`);
  }
}

/**
 * Writes docs/recipe.md, docs/recipe.schema.json, docs/compare.schema.json, docs/cli.md, docs/messages.md, docs/api/ and the
 * generated parts of docs/methods/, from the schema of recipes, the method registry, the model families, the commands and the
 * sources.
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
import { families } from '../../src/models/index.ts';
import { recipeSchema, severalSchema } from '../../src/train/index.ts';
import { apiPages } from './api.ts';
import { type GeneratedFile, markdownTable as table } from './markdown.ts';
import { messagesPage } from './messages.ts';
import { methodPages } from './methods.ts';
import { recipeTypes } from './recipe-type.ts';

type Schema = z.core.JSONSchema.JSONSchema;

const methodRef = (name: string) => ({ $ref: `#/definitions/${name}` });

/** Returns the JSON Schema, draft 7, of what a user writes, before defaults are filled in. */
function jsonSchemaOf(schema: z.ZodType): Schema {
  return z.toJSONSchema(schema, {
    io: 'input',
    target: 'draft-7',
    override({ jsonSchema }) {
      // zod adds the limits of safe integers to every whole number, which tell a reader nothing.
      if (jsonSchema.maximum === Number.MAX_SAFE_INTEGER) delete jsonSchema.maximum;
      if (jsonSchema.minimum === Number.MIN_SAFE_INTEGER) delete jsonSchema.minimum;
    },
  }) as Schema;
}

/**
 * Returns the recipe as JSON Schema, draft 7, which most editors support: what a user writes, before defaults are filled in.
 * Each method is defined once, under its name; the field `method` refers to one definition or to a list of them.
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

/** The schemas of a choice between variants, by their `type`. */
const variantsOf = (choice: Schema): ReadonlyMap<string, Schema> =>
  new Map((choice.oneOf as Schema[]).map((one) => [String((one.properties!.type as Schema).const), one]));

/** The schema of `train.optimizer`. */
const optimizerSchema = (recipe: Schema) => (recipe.properties!.train as Schema).properties!.optimizer as Schema;

/** The recipe as TypeScript types. */
function recipeTypeFile(): GeneratedFile {
  const schema = jsonSchemaOf(recipeSchema);
  const variants = (schema.properties!.method as Schema).anyOf![0] as Schema;
  const task = jsonSchemaOf(severalSchema.shape.tasks).additionalProperties as Schema;
  const { weight, ...fields } = task.properties as Record<string, Schema>;
  const text = recipeTypes(
    schema,
    Object.keys(fields),
    variantsOf(variants),
    variantsOf(optimizerSchema(schema)),
    weight!,
  );
  return { path: 'src/train/recipe-input.gen.ts', text };
}

/** Returns the JSON Schema of a comparison: a recipe without `method`, and the methods to compare. */
export function comparisonJsonSchema(): Schema {
  const recipe = recipeJsonSchema();
  const { method, tasks: _tasks, ...properties } = recipe.properties!;
  const { $schema: _, ...compare } = z.toJSONSchema(compareSchema, { io: 'input', target: 'draft-7' }) as Schema;
  const contender = (compare.properties!.methods as Schema).additionalProperties as Schema;
  contender.properties!.method = method!;
  return {
    ...recipe,
    title: 'A comparison of Graft',
    properties: {
      ...properties,
      compare: { description: 'Which methods are compared, and by which metric.', ...compare },
    },
    required: ['model', 'data', 'run'],
  };
}

/** A sample row of each format, as in a .jsonl file. */
const sampleRows: Readonly<Record<string, string>> = {
  messages: '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}',
  sharegpt: '{"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}',
  'prompt-completion': '{"prompt": "2 + 2 =", "completion": " 4"}',
  alpaca: '{"instruction": "Add the numbers.", "input": "2 and 2", "output": "4"}',
  text: '{"text": "The loss is computed on every token of this."}',
  labelled: '{"text": "WINNER!! Claim now", "text_pair": "optional", "label": "spam"}',
  pairs: '{"text": "A cat sleeps.", "text_pair": "A kitten is resting."}',
  tags: '{"tokens": ["Ada", "was", "in", "Turin"], "tags": ["B-PER", "O", "O", "B-LOC"]}',
  question: '{"question": "Who?", "context": "Ada wrote it.", "answers": {"text": ["Ada"], "answer_start": [0]}}',
  image: '{"image": "digits/0001.png", "label": "7"}',
  tokens: '{"ids": [1, 17, 4], "labels": [-100, 17, 4]}',
  batches: '{"rows": [{"ids": [1, 17, 4]}, {"ids": [1, 9], "labels": [-100, 9]}]}',
};

/** Returns the type of a schema in words. */
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
  if (Object.keys(schema).length === 0) return 'any value';
  if (schema.type !== 'integer' && schema.type !== 'number')
    throw new Error(`docs.ts cannot describe the schema ${JSON.stringify(schema)}`);
  const noun = schema.type === 'integer' ? 'whole number' : 'number';
  const bounds = [
    [' >', schema.exclusiveMinimum],
    [' ≥', schema.minimum],
    [' <', schema.exclusiveMaximum],
    [' ≤', schema.maximum],
  ].flatMap(([sign, bound]) => (bound === undefined ? [] : [`${sign} ${bound}`]));
  return noun + bounds.join(',');
}

/** Returns one table row for every field of an object. @throws Error where a field has no description */
function fieldLines(schema: Schema, path: string, types: Readonly<Record<string, string>> = {}): string[][] {
  return Object.entries(schema.properties as Record<string, Schema>).map(([name, field]) => {
    const fieldPath = path + name;
    if (!field.description)
      throw new Error(`the recipe field ${fieldPath} has no description: add .describe(…) to its schema`);
    const required = schema.required?.includes(name) ? 'required' : '';
    const fallback =
      field.default === undefined ? required : `\`${JSON.stringify(field.default).replaceAll('"', '')}\``;
    return [`\`${fieldPath}\``, types[name] ?? typeOf(field), fallback, field.description];
  });
}

function descriptionOf(schema: Schema, name: string): string {
  if (!schema.description) throw new Error(`the recipe's ${name} has no description: add .describe(…) to its schema`);
  return schema.description;
}

/** Returns the fields that all methods share, then a section for each method with its other fields and a link to its page. */
function methodSections(definitions: Record<string, Schema>, head: readonly string[]): string[] {
  const names = Object.keys(methods);
  const lines = names.map((name) => fieldLines(definitions[name]!, '', { type: 'name of a method' }));
  const shared = lines[0]!.filter((line) =>
    lines.every((others) => others.some((other) => isDeepStrictEqual(line, other))),
  );
  const sections = names.map((name, i) => {
    const about = `${descriptionOf(definitions[name]!, `method ${name}`)} [When and how to use it](methods/${name}.md).`;
    const specific = lines[i]!.filter((line) => !shared.some((other) => isDeepStrictEqual(line, other)));
    const fields = specific.length > 0 ? `\n${table(head, specific)}\n` : '';
    return `### type: ${name}\n\n${about}\n${fields}`;
  });
  return [`${table(head, shared)}\n`, ...sections];
}

/** Returns a section for each optimizer with its settings. */
function optimizerSections(choice: Schema, head: readonly string[]): string[] {
  const sections = [...variantsOf(choice)].map(([name, { properties, required, description }]) => {
    const { type: _, ...settings } = properties!;
    const lines = fieldLines({ properties: settings, required: required ?? [] } as Schema, '');
    return `#### optimizer: ${name}\n\n${description}\n\n${table(head, lines)}\n`;
  });
  return [
    `### optimizer\n\n${choice.description} [Which one to take](optimizers.md). Written as \`train: { optimizer: { type: adamw8bit, weight_decay: 0.01 } }\`.\n`,
    ...sections,
  ];
}

function recipePage(schema: Schema): string {
  const head = ['field', 'type', 'default', 'description'];
  const fields = Object.entries(schema.properties as Record<string, Schema>);
  const isSection = (field: Schema) => field.properties !== undefined;
  const topLevel = { ...schema, properties: Object.fromEntries(fields.filter(([, field]) => !isSection(field))) };
  const links = Object.keys(methods).map((name) => `[${name}](#type-${name})`);
  const method = `[one of the methods](#method) below, or a list of methods: ${links.join(', ')}`;
  const tasks = 'map of names to [the fields of a task](#tasks)';
  const lines = fieldLines(topLevel, '', { method, tasks });
  const sections = fields.flatMap(([name, field]) => {
    const title = `## ${name}\n\n${descriptionOf(field, name)}`;
    if (name === 'method')
      return [
        `${title} [How the methods differ](methods/README.md).\n`,
        ...methodSections(schema.definitions as never, head),
      ];
    if (name === 'tasks') return [tasksSection(title, field, head)];
    if (!isSection(field)) return [];
    const types =
      name === 'train' ? { optimizer: 'map with `type` and the settings of [one of the optimizers](#optimizer)' } : {};
    const lines = `${title}\n\n${table(head, fieldLines(field, `${name}.`, types))}\n`;
    return name === 'train' ? [lines, ...optimizerSections(optimizerSchema(schema), head)] : [lines];
  });
  return [
    '<!-- Generated by tools/codegen/docs.ts from src/train/recipe.ts, src/methods/ and src/optim/. Do not edit. -->',
    '# Recipe\n',
    'A recipe is a YAML file that configures a run of `graft train`; [recipes/](../recipes) has examples to copy. Paths in a recipe are',
    'relative to its directory; paths on the command line (`--set run.dir=out` overrides a field), to the working directory. An unknown',
    'field is an error, and the message suggests the nearest valid one. Editors with a YAML language server validate a recipe whose first',
    'line is `# yaml-language-server: $schema=…/docs/recipe.schema.json`.\n',
    `${table(head, lines)}\n`,
    ...sections,
    '## The run directory\n',
    'A run that was stopped, killed, or ended by a full disk is resumed by the same command, with the losses of a run that was never',
    'stopped. Which run it is, is decided by what decides its losses: the settings of the model, method, data and optimizer, and what the',
    'files hold that they name, wherever these are. Threads, memory settings, the rhythm of measurements and checkpoints may change in',
    'between; after any other change the command names the fields with both values, and touches nothing. A finished run shows its result',
    'again; a larger `train.steps` or `train.epochs`, or `--more-epochs`, go on from its end where the learning-rate schedule does not depend on',
    'it (`constant`). `--fresh` starts over: the earlier run is kept in `previous-1/`, and its adapter stays in place until there is a new one.\n',
    `${table(
      ['file', 'content'],
      [
        ['`adapter/` or `model/`', 'The result, written when the run ends.'],
        [
          '`best/`',
          'The parameters with the lowest held-out loss so far (`eval.keep: best`), until they become the result.',
        ],
        [
          '`checkpoints/step-N/`',
          'What the run is resumed from: parameters, optimizer state, and the state of the run.',
        ],
        ['`events.jsonl`', 'A line for each step, measurement, checkpoint and warning, and the result.'],
        ['`run.json`', 'What the run began with: settings, and digests of the model, the rows and adapters.'],
      ],
    )}\n`,
    '## Rows\n',
    'An example row of each data format. With `auto`, the format is detected from the fields of the rows (`batches` must be named). In CSV',
    'and Parquet files the fields are columns.\n',
    `${table(['format', 'example row'], rowLines(schema))}\n`,
    '**Conversations** (`messages`, `sharegpt`, `alpaca`, and `prompt-completion` with messages). The model learns what the assistant',
    'writes after the generation prompt: its reasoning, text and calls of functions as the chat template prints them, and the end of the',
    'turn. A row may also have `system`, `tools` or `functions` (a list, or a list as JSON), `documents`, and `chat_template_kwargs`',
    '(variables of the template); `alpaca` has `history`, the earlier pairs of question and answer. A turn with `weight: 0`, `train: false`',
    'or `loss: false` is context. ShareGPT calls the assistant `gpt`, `assistant`, `model`, `chatgpt`, `bot`, `chatbot`, `bing` or `bard`, the user',
    '`human` or `user`, the tool `tool`, `observation`, `function_response` or `tool_response`, and a call of a function as JSON `function_call`',
    'or `tool_call`. Fields of a message that are null are left out, as transformers 5 does. What is not used is named in a note: other',
    'columns, turns of roles that are not learned, and what the template does not print.\n',
    'Columns with other names are taken with `data.columns: { text: body, label: category }`. A source is a file, all files of a folder or of a',
    'pattern, a data set on the hub, or a list of these; of a data set of several splits `hub:owner/name` is the split `train`, and',
    '`hub:owner/name/data/test-*` the files that the pattern matches. CSV files may separate fields by commas, semicolons, tabs or bars.',
    'Of rows that cannot be used, the first twenty are named at once. The start of a run says how many rows are cut, left out or have an empty',
    'answer, with the first five places, and lists the classes; `graft data recipe.yaml` shows rows as the model will see them. A label that is',
    'a number names a class by its place in the head, unless a class is called by a number; which class each number is, is told. Rows that only',
    'ask (`prompt`, `instruction`, or `messages` that end with the user) are for `graft predict`.\n',
  ].join('\n');
}

/** Returns the section on recipes with several tasks. */
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

Each task has the fields \`task\`, \`labels\`, \`class_weights\`, \`temperature\` and \`data\`, and a weight. An epoch has as many steps as the rows
of all tasks need. The best evaluation is the one with the lowest mean of the tasks' losses, weighted by their shares of the steps. Each
saved adapter is complete: it has the shared weights and the head of its task. Rows of the first task have the task number 0, those of the
second 1, and so on, unless a row has a number of its own; [multitask prompts](methods/multitask-prompt.md) use these numbers. Tasks whose
models have different layer names (embedding and any other) cannot share an adapter, and \`method: full\` writes no adapter.

${table(head, fieldLines({ properties: { weight: weight! } }, 'tasks.NAME.'))}
`;
}

/** Returns a table row for each format. @throws Error where a format has no sample row, or the reader does not detect it */
function rowLines(schema: Schema): string[][] {
  const formats = ((schema.properties!.data as Schema).properties!.format as Schema).enum as string[];
  return formats
    .filter((format) => format !== 'auto')
    .map((format) => {
      const row = sampleRows[format];
      if (!row) throw new Error(`docs.ts has no sample row of the format ${format}`);
      if (format !== 'batches') toExample({ value: JSON.parse(row), place: `docs.ts, ${format}` }, 'auto');
      return [`\`${format}\``, `\`${row}\``];
    });
}

/** Returns the list of model types, which the hub's client reads before it downloads weights: it may not import the families. */
function modelTypesFile(): GeneratedFile {
  const types = families.flatMap((family) => family.types).map((type) => `  '${type}',`);
  return {
    path: 'src/io/model-types.gen.ts',
    text: [
      '// Generated by tools/codegen/docs.ts from src/models/registry.ts. Do not edit.',
      '/** `model_type` of the families that Graft reads. */',
      `export const modelTypes: readonly string[] = [\n${types.join('\n')}\n];\n`,
    ].join('\n'),
  };
}

/** Returns the text that a command prints after its options: examples and notes. */
function afterHelp(command: Command): string {
  let help = '';
  const { writeOut } = command.configureOutput();
  command.configureOutput({ writeOut: (text) => (help += text) }).outputHelp();
  command.configureOutput({ ...(writeOut && { writeOut }) });
  const heading = '\nExamples:\n';
  const start = help.indexOf(heading);
  if (start < 0) throw new Error(`graft ${command.name()} --help has no examples`);
  return help.slice(start + heading.length).trimEnd();
}

const helpOf = (command: Command, parameter: Argument | Option, name: string) => {
  if (!parameter.description) throw new Error(`graft ${command.name()}: ${name} has no description`);
  return parameter.description;
};

function commandSection(command: Command): string {
  const usage = `graft ${command.name()} ${command.usage()}`;
  const args = command.registeredArguments.map((argument) => {
    const name = `<${argument.name()}>`;
    return [`\`${name}\``, helpOf(command, argument, name)];
  });
  const options = command.options.map((option) => {
    const choices = option.argChoices ? ` (${option.argChoices.map((choice) => `\`${choice}\``).join(' ')})` : '';
    const fallback = option.defaultValue === undefined ? '' : `\`${option.defaultValue}\``;
    return [
      `\`${option.flags}\``,
      option.mandatory ? 'required' : fallback,
      helpOf(command, option, option.flags) + choices,
    ];
  });
  const lines = afterHelp(command).replaceAll(/^ {2}\$ /gm, '');
  return [
    `## graft ${command.name()}\n\n${command.description()}\n`,
    `    ${usage}\n`,
    ...(args.length > 0 ? [`${table(['argument', 'description'], args)}\n`] : []),
    `${table(['option', 'default', 'description'], options)}\n`,
    `Examples:\n\n\`\`\`\n${lines}\n\`\`\`\n`,
  ].join('\n');
}

function commandPage(graft: Command): string {
  const [first, ...notes] = afterHelp(graft).split('\n\n');
  return [
    '<!-- Generated by tools/codegen/docs.ts from src/cli/. Do not edit. -->',
    '# Command line\n',
    `${graft.description()} Run it as \`npx graft\`.\n`,
    `\`\`\`\n${first!.replaceAll(/^ {2}\$ /gm, '')}\n\`\`\`\n`,
    ...notes.map((note) => `${note}\n`),
    `${table(
      ['command', 'description'],
      graft.commands.map((command) => [`[\`${command.name()}\`](#graft-${command.name()})`, command.description()]),
    )}\n`,
    ...graft.commands.map(commandSection),
  ].join('\n');
}

/** Returns every generated document. */
export async function documents(): Promise<GeneratedFile[]> {
  await startEngine();
  const schema = recipeJsonSchema();
  return [
    { path: 'docs/recipe.md', text: recipePage(schema) },
    { path: 'docs/recipe.schema.json', text: `${JSON.stringify(schema, null, 2)}\n` },
    { path: 'docs/compare.schema.json', text: `${JSON.stringify(comparisonJsonSchema(), null, 2)}\n` },
    recipeTypeFile(),
    modelTypesFile(),
    { path: 'docs/cli.md', text: commandPage(program()) },
    messagesPage(),
    ...methodPages(),
    ...apiPages(),
  ];
}

if (import.meta.main) {
  const write = ({ path, text }: GeneratedFile) => {
    const file = join(packageRoot, path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, text);
    console.log(`${file}: ${text.split('\n').length} lines`);
  };
  // The pages of the library read these types.
  write(recipeTypeFile());
  for (const file of await documents()) write(file);
}

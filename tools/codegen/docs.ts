/**
 * Writes docs/recipe.md, docs/recipe.schema.json and docs/cli.md from the recipe's schema, the method registry and the
 * command tree.
 *   npm run generate
 * A test calls `documents()` and compares.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Argument, Command, Option } from 'commander';
import { z } from 'zod';
import { packageRoot } from '../../src/base/index.ts';
import { program } from '../../src/cli/main.ts';
import { toExample } from '../../src/data/index.ts';
import { recipeSchema } from '../../src/train/index.ts';

type Schema = z.core.JSONSchema.JSONSchema;

export interface GeneratedFile {
  /** From the root of the checkout. */
  readonly path: string;
  readonly text: string;
}

/** The recipe as JSON Schema, draft 7, which editors understand best; what a person writes, before defaults. */
export function recipeJsonSchema(): Schema {
  return z.toJSONSchema(recipeSchema, {
    io: 'input',
    target: 'draft-7',
    override({ jsonSchema }) {
      // zod bounds every whole number by what a double holds; a reader learns nothing from it.
      if (jsonSchema.maximum === Number.MAX_SAFE_INTEGER) delete jsonSchema.maximum;
    },
  }) as Schema;
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

const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('\n', ' ');
const table = (head: readonly string[], lines: readonly (readonly string[])[]) =>
  [head, head.map(() => '---'), ...lines].map((line) => `| ${line.map(cell).join(' | ')} |`).join('\n');

/** A schema's type in words. */
function typeOf(schema: Schema): string {
  const variants = (schema.anyOf ?? schema.oneOf) as Schema[] | undefined;
  if (variants) return variants.flatMap((one) => (one.type === 'null' ? [] : [typeOf(one)])).join(', or ');
  if (schema.const !== undefined) return `\`${schema.const}\``;
  if (schema.enum) return schema.enum.map((value) => `\`${value}\``).join(' ');
  if (schema.type === 'array') return `list of ${typeOf(schema.items as Schema)}`;
  if (schema.type === 'object') return `map of names to ${typeOf(schema.additionalProperties as Schema)}`;
  if (schema.type === 'boolean') return '`true` `false`';
  if (schema.type === 'string') return 'text';
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
function fieldLines(schema: Schema, path: string): string[][] {
  return Object.entries(schema.properties as Record<string, Schema>).map(([name, field]) => {
    const at = path + name;
    if (!field.description) throw new Error(`the field ${at} of the recipe has no meaning: give it a .describe`);
    const needed = schema.required?.includes(name) ? 'required' : '';
    const fallback = field.default === undefined ? needed : `\`${JSON.stringify(field.default).replaceAll('"', '')}\``;
    return [`\`${at}\``, typeOf(field), fallback, field.description];
  });
}

function meaning(schema: Schema, name: string): string {
  if (!schema.description) throw new Error(`${name} of the recipe has no meaning: give it a .describe`);
  return schema.description;
}

function recipePage(schema: Schema): string {
  const head = ['field', 'type', 'default', 'meaning'];
  const fields = Object.entries(schema.properties as Record<string, Schema>);
  const isSection = (field: Schema) => field.properties !== undefined || field.oneOf !== undefined;
  const plain = { ...schema, properties: Object.fromEntries(fields.filter(([, field]) => !isSection(field))) };
  const sections = fields
    .filter(([, field]) => isSection(field))
    .flatMap(([name, field]) => {
      const title = `## ${name}\n\n${meaning(field, name)}\n`;
      if (!field.oneOf) return [title, `${table(head, fieldLines(field, `${name}.`))}\n`];
      return [
        title,
        ...(field.oneOf as Schema[]).flatMap((variant) => {
          const type = (variant.properties!.type as Schema).const as string;
          return [
            `### type: ${type}\n\n${meaning(variant, `${name} ${type}`)}\n`,
            `${table(head, fieldLines(variant, `${name}.`))}\n`,
          ];
        }),
      ];
    });
  return [
    '<!-- Generated by tools/codegen/docs.ts from src/train/recipe.ts and src/methods/. Do not edit. -->',
    '# Recipe\n',
    'A recipe is a YAML file that says what `graft train` does; [recipes/](../recipes) has some to copy. Paths in it are relative to',
    "the recipe's own folder; those given by `--set run.dir=out`, which overrides a field, to the working directory. Unknown",
    'fields are refused, with the nearest known one named. Editors check a recipe that begins with',
    '`# yaml-language-server: $schema=…/docs/recipe.schema.json`.\n',
    `${table(head, fieldLines(plain, ''))}\n`,
    ...sections,
    '## Rows\n',
    'What a row of the data looks like in each format. With `auto`, its fields tell which one it is (`batches` has to be named).',
    'CSV and Parquet files have the fields as columns.\n',
    `${table(['format', 'a row'], rowLines(schema))}\n`,
  ].join('\n');
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
export function documents(): GeneratedFile[] {
  const schema = recipeJsonSchema();
  return [
    { path: 'docs/recipe.md', text: recipePage(schema) },
    { path: 'docs/recipe.schema.json', text: `${JSON.stringify(schema, null, 2)}\n` },
    { path: 'docs/cli.md', text: commandPage(program()) },
  ];
}

if (import.meta.main) {
  for (const { path, text } of documents()) {
    const file = join(packageRoot, path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, text);
    console.log(`${file}: ${text.split('\n').length} lines`);
  }
}

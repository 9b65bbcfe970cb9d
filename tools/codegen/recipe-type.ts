/** Writes src/train/recipe-input.gen.ts: the recipe's schema as TypeScript types, with its descriptions as docstrings. */
import type { z } from 'zod';

type Schema = z.core.JSONSchema.JSONSchema;

const pascal = (name: string) =>
  name.replaceAll(/(^|[^A-Za-z0-9])([a-z0-9])/g, (_, _sep, letter: string) => letter.toUpperCase());

/** Fields with a type of their own. Rows are typed by hand: they may be streams, which a schema cannot say. */
const fieldTypes: Readonly<Record<string, string>> = {
  'data.train': 'RowStream',
  'data.eval': 'RowStream',
  'train.optimizer': 'OptimizerInput',
};

/** A schema as a TypeScript type. */
function typeOf(schema: Schema, field = ''): string {
  if (fieldTypes[field]) return fieldTypes[field];
  const variants = (schema.anyOf ?? schema.oneOf) as Schema[] | undefined;
  if (variants) return [...new Set(variants.map((variant) => typeOf(variant)))].join(' | ');
  if (Array.isArray(schema.type)) {
    return schema.type.map((type) => typeOf({ ...schema, type } as Schema)).join(' | ');
  }
  if (schema.const !== undefined) return literal(schema.const);
  if (schema.enum) return schema.enum.map(literal).join(' | ');
  switch (schema.type) {
    case 'array': {
      const items = Array.isArray(schema.items) ? (schema.items as Schema[]) : undefined;
      if (items) return `readonly [${items.map((item) => typeOf(item)).join(', ')}]`;
      const item = typeOf(schema.items as Schema);
      return `readonly ${item.includes(' ') ? `(${item})` : item}[]`;
    }
    case 'object':
      return schema.properties
        ? `{\n${fieldsOf(schema)}\n}`
        : `Readonly<Record<string, ${typeOf(schema.additionalProperties as Schema)}>>`;
    case 'integer':
      return 'number';
    case 'string':
    case 'number':
    case 'boolean':
    case 'null':
      return schema.type;
    default:
      if (Object.keys(schema).filter((key) => key !== 'description').length === 0) return 'unknown';
      throw new Error(`recipe-type.ts has no type for ${JSON.stringify(schema)}`);
  }
}

const literal = (value: unknown) => (typeof value === 'string' ? `'${value}'` : String(value));

/** The docstring of a field: its description, and its default. */
function docOf({ description, default: fallback }: Schema): string {
  const shown = fallback !== undefined && fallback !== null && !/\bdefault\b/i.test(description ?? '');
  const simple = typeof fallback !== 'object';
  const text = [description, shown && simple ? `Default: ${JSON.stringify(fallback)}.` : ''].filter(Boolean).join(' ');
  return text ? `  /** ${text.replaceAll('*/', '*\u200b/')} */\n` : '';
}

function fieldsOf(schema: Schema, path = ''): string {
  return Object.entries(schema.properties as Record<string, Schema>)
    .map(([name, field]) => {
      const optional = !schema.required?.includes(name);
      const key = /^[A-Za-z_]\w*$/.test(name) ? name : `'${name}'`;
      const type = typeOf(field, path && `${path}.${name}`);
      return `${docOf(field)}  readonly ${key}${optional ? '?' : ''}: ${type}${optional ? ' | undefined' : ''};`;
    })
    .join('\n');
}

/** Interfaces of variants that are told apart by `type`, and their union. */
const unionOf = (name: string, doc: string, variants: ReadonlyMap<string, Schema>) => [
  ...[...variants].map(([type, variant]) =>
    interfaceOf(`${pascal(type)}Input`, variant.description!, fieldsOf(variant)),
  ),
  `/** ${doc} */`,
  `export type ${name} =\n${[...variants.keys()].map((type) => `  | ${pascal(type)}Input`).join('\n')};\n`,
];

const interfaceOf = (name: string, doc: string, fields: string) =>
  `/** ${doc} */\nexport interface ${name} {\n${fields}\n}\n`;

/**
 * @param schema of a recipe of one task
 * @param taskNames fields that a recipe of several tasks has in each of them
 * @param methods the methods' schemas, by name
 * @param optimizers the optimizers' schemas, by name
 * @param weight the field that a task among several has beside them
 */
export function recipeTypes(
  schema: Schema,
  taskNames: readonly string[],
  methods: ReadonlyMap<string, Schema>,
  optimizers: ReadonlyMap<string, Schema>,
  weight: Schema,
): string {
  const properties = schema.properties as Record<string, Schema>;
  const part = (names: readonly string[]): Schema => ({
    properties: Object.fromEntries(names.map((name) => [name, properties[name]!])),
    required: (schema.required ?? []).filter((name) => names.includes(name)),
  });
  const sections = { data: 'DataInput', train: 'TrainInput', eval: 'EvalInput', run: 'RunInput' };
  const withSections = (fields: Schema) => {
    const replaced = Object.entries(fields.properties as Record<string, Schema>).map(([name, field]) => {
      const optional = !fields.required?.includes(name);
      const types: Record<string, string> = {
        ...sections,
        data: 'DataInput | RowStream',
        method: 'MethodInput | readonly MethodInput[]',
      };
      const type = types[name] ?? typeOf(field);
      return `${docOf(field)}  readonly ${name}${optional ? '?' : ''}: ${type}${optional ? ' | undefined' : ''};`;
    });
    return replaced.join('\n');
  };
  const commonNames = Object.keys(properties).filter((name) => !taskNames.includes(name));
  return [
    '// Generated by tools/codegen/recipe-type.ts from src/train/recipe.ts, src/methods/ and src/optim/. Do not edit.',
    "import type { RowStream } from '../data/index.ts';\n",
    ...Object.entries(sections).map(([name, type]) =>
      interfaceOf(type, properties[name]!.description!, fieldsOf(properties[name]!, name)),
    ),
    ...unionOf('OptimizerInput', 'An optimizer and its settings, by its `type`.', optimizers),
    ...unionOf('MethodInput', 'A method and its fields, by its `type`.', methods),
    interfaceOf('TaskInput', 'A task: what is learned, from which rows.', withSections(part(taskNames))),
    interfaceOf('CommonInput', 'The fields of a recipe that all its tasks share.', withSections(part(commonNames))),
    '/** A recipe of one task. */',
    'export interface OneTaskRecipe extends CommonInput, TaskInput {\n  /** Absent: the recipe has one task. */\n  readonly tasks?: undefined;\n}\n',
    '/** A task among several. */',
    `export interface WeightedTaskInput extends TaskInput {\n${docOf(weight)}  readonly weight?: number | undefined;\n}\n`,
    '/** A recipe of several tasks, which share one adapter. */',
    'export interface SeveralTasksRecipe extends CommonInput {',
    '  /** The tasks by name. */',
    '  readonly tasks: Readonly<Record<string, WeightedTaskInput>>;',
    ...taskNames.map((name) => `  /** Absent: each task has its own. */\n  readonly ${name}?: undefined;`),
    '}\n',
    '/** A recipe: the fields of a recipe file (docs/recipe.md), with rows in memory wherever it may name a file. */',
    'export type RecipeInput = OneTaskRecipe | SeveralTasksRecipe;\n',
  ].join('\n');
}

/**
 * Writes src/tensor/ops.gen.ts from src/tensor/ops.list and the schemas that LibTorch publishes.
 *   npm run generate
 * A test calls `generate()` and compares.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../../src/base/index.ts';
import { startEngine } from '../../src/engine/index.ts';

interface Param {
  readonly name: string;
  readonly type: string;
  readonly fallback: string | undefined;
  readonly keyword: boolean;
}

const listFile = join(packageRoot, 'src/tensor/ops.list');
export const outFile = join(packageRoot, 'src/tensor/ops.gen.ts');

const camel = (name: string) => name.replaceAll(/(?<=[a-zA-Z0-9])_([a-z])/g, (_, c: string) => c.toUpperCase());
const reserved = new Set(['var', 'in', 'default', 'with', 'function', 'new', 'delete', 'export', 'import', 'class']);
const param = (name: string) => (reserved.has(name) ? `${name}_` : camel(name));

/** Returns the TypeScript type of a schema type. */
function tsType(type: string): string {
  if (type.endsWith('?')) {
    const inner = tsType(type.slice(0, -1));
    return `${inner} | null`;
  }
  const list = /^(.*)\[\d*\]$/.exec(type);
  if (list) {
    const inner = tsType(list[1]!);
    return inner.includes('|') ? `readonly (${inner})[]` : `readonly ${inner}[]`;
  }
  const base = type.replace(/\(.*\)$/, '');
  const typeNames: Record<string, string> = {
    Tensor: 'Tensor',
    int: 'number',
    SymInt: 'number',
    float: 'number',
    bool: 'boolean',
    str: 'string',
    Scalar: 'number | boolean',
    number: 'number | boolean',
    ScalarType: 'DType',
    Device: 'Device',
    Generator: 'Generator',
  };
  const tsName = typeNames[base];
  if (!tsName) throw new Error(`the schema type ${type} has no TypeScript type in tools/codegen/ops.ts`);
  return tsName;
}

/** Returns the code that passes a TypeScript value to the engine. */
function lowered(expression: string, type: string): string {
  const optional = type.endsWith('?');
  const inner = optional ? type.slice(0, -1) : type;
  const base = inner.replace(/\(.*?\)/, '');
  const or = (value: string) => (optional ? `${expression} == null ? null : ${value}` : value);
  if (base === 'Tensor') return optional ? `${expression}?.id` : `${expression}.id`;
  if (/^Tensor\[\d*\]$/.test(base)) return or(`${expression}.map(idOf)`);
  if (/^Tensor\?\[\d*\]$/.test(base)) return or(`${expression}.map((t) => t?.id)`);
  if (base === 'ScalarType') return or(`dtypes[${expression}].code`);
  if (base === 'Generator') return optional ? `${expression}?.id` : `${expression}.id`;
  return expression;
}

/** Returns the TypeScript form of a default value. */
function fallbackOf(text: string): string {
  if (text === 'None') return 'null';
  if (text === 'True') return 'true';
  if (text === 'False') return 'false';
  if (/^\[.*\]$/.test(text)) return text;
  if (text === 'Mean') return '1';
  return text.replaceAll(/^"(.*)"$/g, "'$1'");
}

// Types whose optional arguments always have their default: tensors are in row-major order unless an input tensor is not.
const omittedTypes = new Set(['Layout', 'MemoryFormat']);

/** Returns the parameters and the return types of a schema. */
function parse(schema: string): { params: Param[]; returns: string[] } {
  const open = schema.indexOf('(');
  let depth = 0;
  let close = open;
  for (let i = open; i < schema.length; i++) {
    if (schema[i] === '(') depth++;
    if (schema[i] === ')' && --depth === 0) {
      close = i;
      break;
    }
  }
  let keyword = false;
  const params: Param[] = [];
  for (const piece of splitTop(schema.slice(open + 1, close))) {
    if (piece === '*') {
      keyword = true;
      continue;
    }
    const match = /^(\S+(?:\([^)]*\))?(?:\[\d*\])?\??) (\w+)(?:=(.*))?$/.exec(piece);
    if (!match) throw new Error(`the parameter "${piece}" of ${schema} cannot be parsed`);
    params.push({ type: match[1]!, name: match[2]!, fallback: match[3], keyword });
  }
  const result = schema
    .slice(close + 1)
    .replace(/^ -> /, '')
    .trim();
  const returns = result.startsWith('(') ? splitTop(result.slice(1, -1)) : [result];
  return { params, returns: returns.filter(Boolean).map((r) => r.split(' ')[0]!) };
}

/** Splits a list at its commas outside of brackets. */
function splitTop(text: string): string[] {
  const pieces: string[] = [];
  let depth = 0;
  let start = 0;
  for (let i = 0; i <= text.length; i++) {
    const c = text[i];
    if (c === '(' || c === '[') depth++;
    else if (c === ')' || c === ']') depth--;
    else if ((c === ',' && depth === 0) || i === text.length) {
      const piece = text.slice(start, i).trim();
      if (piece) pieces.push(piece);
      start = i + 1;
    }
  }
  return pieces;
}

/** Returns the TypeScript function of an operator. */
function operator(index: number, tsName: string, schema: string): string {
  const { params, returns } = parse(schema);
  const plain = (p: Param) => p.type.replace(/\(.*?\)/, '').replace(/\?$/, '');
  const visible = params.filter(
    (p) => !omittedTypes.has(plain(p)) && p.name !== 'pin_memory' && p.name !== 'non_blocking',
  );
  const positional = visible.filter((p) => !p.keyword);
  const keywords = visible.filter((p) => p.keyword);
  const signature = positional.map((p) => {
    if (p.fallback === undefined) return `${param(p.name)}: ${tsType(p.type.replace(/\(.*?\)/, ''))}`;
    return `${param(p.name)}: ${tsType(p.type.replace(/\(.*?\)/, ''))} = ${fallbackOf(p.fallback)}`;
  });
  if (keywords.length > 0) {
    const optional = keywords.every((p) => p.fallback !== undefined);
    const fields = keywords.map(
      (p) => `${param(p.name)}${p.fallback === undefined ? '' : '?'}: ${tsType(p.type.replace(/\(.*?\)/, ''))}`,
    );
    signature.push(`options: { ${fields.join('; ')} }${optional ? ' = {}' : ''}`);
  }
  const passed = params.map((p) => {
    if (!visible.includes(p)) return p.name === 'non_blocking' ? 'false' : p.type === 'MemoryFormat' ? '0' : 'null';
    const name = p.keyword ? `options.${param(p.name)}` : param(p.name);
    const value =
      p.keyword && p.fallback !== undefined && p.fallback !== 'None' ? `(${name} ?? ${fallbackOf(p.fallback)})` : name;
    return lowered(value, p.type.replace(/\(.*?\)/, ''));
  });
  while (passed.at(-1) === 'null') passed.pop();
  const call = `dispatcher.call(${[index, ...passed].join(', ')})`;
  const bare = returns.map((r) => r.replace(/\(.*?\)/, ''));
  let type = 'void';
  let body = `${call};`;
  const written = params.find((p) => p.type.includes('!') && p.type === returns[0]);
  if (bare.length === 1 && written && bare[0] === 'Tensor') {
    // The result is the argument that is written, and the call returns nothing.
    type = 'Tensor';
    body = `${call};\n  return ${written.keyword ? 'options.' : ''}${param(written.name)};`;
  } else if (bare.length === 1 && bare[0] === 'Tensor') {
    type = 'Tensor';
    body = `return new Tensor(${call} as number);`;
  } else if (bare.length === 1 && bare[0] === 'Tensor[]') {
    type = 'Tensor[]';
    body = `return (${call} as number[]).map((id) => new Tensor(id));`;
  } else if (bare.length > 1) {
    type = `[${bare.map(() => 'Tensor').join(', ')}]`;
    body = `return (${call} as number[]).map((id) => new Tensor(id)) as ${type};`;
  } else if (bare.length === 1) {
    type = tsType(bare[0]!);
    body = `return ${call} as ${type};`;
  }
  return `/** ${schema.replaceAll('*/', '* /')} */\nexport function ${tsName}(${signature.join(', ')}): ${type} {\n  ${body}\n}\n`;
}

/** Returns the text of ops.gen.ts and the number of its operators. */
export async function generate(): Promise<{ text: string; count: number }> {
  const { native } = await startEngine();
  const lines = readFileSync(listFile, 'utf8')
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line && !line.startsWith('#'));
  const names = lines.map((line) => line.split(' as ')[0]!);
  const parts = lines.map((line, i) => {
    const [name, alias] = line.split(' as ');
    const schema = native.schema(name!);
    return operator(i, alias ?? camel(name!.split('::')[1]!.split('.')[0]!), schema);
  });
  const head = [
    '// Generated by tools/codegen/ops.ts from ops.list and the schemas of LibTorch. Do not edit.',
    '/** The operators of LibTorch, and of Graft, as functions of tensors. The docstring of each one is its schema. */',
    "import { onStart } from '../engine/index.ts';",
    "import type { Device } from './device.ts';",
    "import { type DType, dtypes } from './dtype.ts';",
    "import type { Generator } from './random.ts';",
    "import { dispatcher, Tensor } from './tensor.ts';",
    '',
    'const idOf = (tensor: Tensor) => tensor.id;',
    '',
    '// The position in this list is the number of the operator in calls.',
    `const names = [\n${names.map((n) => `  '${n}',`).join('\n')}\n];`,
    'onStart((native) => native.resolve(names));',
    '',
  ];
  return { text: `${head.join('\n')}\n${parts.join('\n')}`, count: names.length };
}

if (import.meta.main) {
  const { text, count } = await generate();
  writeFileSync(outFile, text);
  console.log(`${outFile}: ${count} operators`);
}

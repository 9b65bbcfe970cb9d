/** Finds the messages in the C++ sources: `TORCH_CHECK` and its kin, and JavaScript errors that the addon makes itself. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../../src/base/index.ts';
import type { Message } from './message-sites.ts';
import { unknownText } from './message-text.ts';

/** How many arguments come before the message. */
const conditions: Readonly<Record<string, number>> = {
  TORCH_CHECK: 1,
  TORCH_CHECK_INDEX: 1,
  TORCH_CHECK_VALUE: 1,
  TORCH_CHECK_TYPE: 1,
  TORCH_CHECK_NOT_IMPLEMENTED: 1,
  TORCH_INTERNAL_ASSERT: 1,
  TORCH_CHECK_WITH: 2,
  'Error::New': 1,
};

const start = new RegExp(String.raw`\b(${Object.keys(conditions).join('|')})\s*\(`, 'g');

/** The source with comments blanked, each character kept in its place. */
const withoutComments = (source: string) =>
  source.replaceAll(/"(?:[^"\\\n]|\\.)*"|\/\/[^\n]*|\/\*[^]*?\*\//g, (match) =>
    match.startsWith('"') ? match : match.replaceAll(/[^\n]/g, ' '),
  );

/** The arguments of a call whose opening bracket is before `from`. */
function argumentsAt(source: string, from: number): string[] {
  const args: string[] = [];
  let depth = 0;
  let begin = from;
  for (let i = from; i < source.length; i++) {
    const c = source[i]!;
    if (c === '"') {
      for (i++; source[i] !== '"'; i++) if (source[i] === '\\') i++;
    } else if ('([{'.includes(c)) depth++;
    else if (')]}'.includes(c)) {
      if (depth-- > 0) continue;
      args.push(source.slice(begin, i));
      return args;
    } else if (c === ',' && depth === 0) {
      args.push(source.slice(begin, i));
      begin = i + 1;
    }
  }
  throw new Error(`a call has no end: ${source.slice(from, from + 40)}`);
}

/** Literals one after the other are one text; what is computed is `…`. */
function textOf(argument: string): string {
  const literals = [...argument.matchAll(/"((?:[^"\\]|\\.)*)"/g)];
  const isLiteral = argument.replaceAll(/"(?:[^"\\]|\\.)*"/g, '').trim() === '';
  if (isLiteral && literals.length > 0) return JSON.parse(`"${literals.map(([, text]) => text).join('')}"`) as string;
  return unknownText;
}

export function nativeMessages(): Message[] {
  const files = (readdirSync(join(packageRoot, 'native'), { recursive: true }) as string[])
    .filter((name) => /\.(cc|h)$/.test(name))
    .sort();
  return files.flatMap((name) => {
    const source = withoutComments(readFileSync(join(packageRoot, 'native', name), 'utf8'));
    return [...source.matchAll(start)].flatMap((match) => {
      const args = argumentsAt(source, match.index + match[0].length).slice(conditions[match[1]!]);
      const text = args.map(textOf).join('').replaceAll(/…{2,}/g, unknownText);
      if (!/\p{L}{2}/u.test(text)) return [];
      return [{ file: `native/${name}`, position: match.index, kind: 'engine', text, hint: '' }];
    });
  });
}

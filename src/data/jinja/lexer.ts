import { JinjaError } from './values.ts';

export interface Token {
  readonly type:
    | 'data'
    | 'begin'
    | 'end'
    | 'print'
    | 'endprint'
    | 'name'
    | 'string'
    | 'integer'
    | 'float'
    | 'operator'
    | 'eof';
  /** Text, name, operator, or the value of a literal. */
  readonly value: string;
  readonly line: number;
}

/** What is not valid Jinja. */
export class TemplateSyntaxError extends JinjaError {
  constructor(message: string, line: number) {
    super(`line ${line}: ${message}`);
  }
}

/** White space as Python's `\s` and `str.isspace` have it. */
export const SPACE = /[\p{White_Space}\x1c-\x1f]/u;
const SPACES = /[\p{White_Space}\x1c-\x1f]+/uy;
const NAME = /[\p{XID_Start}_][\p{XID_Continue}]*/uy;
const STRING = /'(?:[^'\\]|\\[\s\S])*'|"(?:[^"\\]|\\[\s\S])*"/y;
const FLOAT = /(?<!\.)(?:\d+_)*\d+(?:(?:\.(?:\d+_)*\d+)?[eE][-+]?(?:\d+_)*\d+|\.(?:\d+_)*\d+)/y;
const INTEGER = /0[bB](?:_?[01])+|0[oO](?:_?[0-7])+|0[xX](?:_?[\da-fA-F])+|[1-9](?:_?\d)*|0(?:_?0)*/y;
const OPERATOR = /\/\/|\*\*|[=!<>]=|[-+/*%~[\](){}<>=.:|,;]/y;
const RAW = /\{%[-+]?[\p{White_Space}\x1c-\x1f]*raw[\p{White_Space}\x1c-\x1f]*(-?)%\}/uy;
const ENDRAW = /\{%([-+]?)[\p{White_Space}\x1c-\x1f]*endraw[\p{White_Space}\x1c-\x1f]*([-+]?)%\}/gu;
/** What a tag is made of; numbers come before names. */
const literals = [
  ['float', FLOAT],
  ['integer', INTEGER],
  ['name', NAME],
  ['string', STRING],
  ['operator', OPERATOR],
] as const;
const closing: Readonly<Record<string, string>> = { '(': ')', '[': ']', '{': '}' };

const simpleEscapes: Readonly<Record<string, string>> = {
  '\n': '',
  '\\': '\\',
  "'": "'",
  '"': '"',
  a: '\x07',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
  v: '\v',
};

/** The text of a string literal, with Python's escapes. */
function withEscapes(body: string, line: number): string {
  return body.replaceAll(
    /\\(?:x([\da-fA-F]{2})|u([\da-fA-F]{4})|U([\da-fA-F]{8})|([0-7]{1,3})|([\s\S]))/gu,
    (all, x, u, long, octal, other: string) => {
      const code = x ?? u ?? long;
      if (code !== undefined) return String.fromCodePoint(Number.parseInt(code, 16));
      if (octal !== undefined) return String.fromCodePoint(Number.parseInt(octal, 8));
      if ('xuUN'.includes(other))
        throw new TemplateSyntaxError(`the escape ${all} is not complete or not supported`, line);
      return simpleEscapes[other] ?? all; // unknown escapes stay as they are
    },
  );
}

/**
 * Splits a template into tokens, with white space removed as `trim_blocks` and `lstrip_blocks` do unless a `+` keeps it.
 * @throws TemplateSyntaxError
 */
export function tokenize(template: string): Token[] {
  const source = template.replaceAll(/\r\n?/g, '\n').replace(/\n$/, '');
  const tokens: Token[] = [];
  let at = 0;
  let line = 1;
  const add = (type: Token['type'], value: string) => tokens.push({ type, value, line });
  const advance = (to: number) => {
    for (let next = source.indexOf('\n', at); next >= 0 && next < to; next = source.indexOf('\n', next + 1)) line++;
    at = to;
  };
  const match = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = at;
    return pattern.exec(source);
  };
  const skipSpace = () => {
    const found = match(SPACES);
    if (found) advance(SPACES.lastIndex);
  };
  /** What follows a tag: `-` removes white space, and blocks remove one line break unless there is a `+`. */
  const trimAfter = (sign: string, isBlock: boolean) => {
    if (sign === '-') skipSpace();
    else if (sign !== '+' && isBlock && source[at] === '\n') advance(at + 1);
  };
  /** Text before a tag, without what the tag's sign or `lstrip_blocks` removes. */
  const textBefore = (text: string, sign: string, isBlock: boolean, startsLine: boolean) => {
    if (sign === '-') {
      let stop = text.length;
      while (stop > 0 && SPACE.test(text[stop - 1]!)) stop--;
      return text.slice(0, stop);
    }
    const lineStart = text.lastIndexOf('\n') + 1;
    const isIndent = sign !== '+' && isBlock && (lineStart > 0 || startsLine);
    return isIndent && lineStart < text.length && [...text.slice(lineStart)].every((c) => SPACE.test(c))
      ? text.slice(0, lineStart)
      : text;
  };

  /** Reads the tokens of a tag up to its end. */
  const readTag = (isBlock: boolean) => {
    const open: string[] = [];
    const [endType, endTag] = isBlock ? (['end', '%}'] as const) : (['endprint', '}}'] as const);
    for (;;) {
      skipSpace();
      if (at >= source.length) throw new TemplateSyntaxError(`missing ${endTag}`, line);
      const endSign = source[at] === '-' || (source[at] === '+' && isBlock) ? source[at]! : '';
      if (open.length === 0 && source.startsWith(endTag, at + endSign.length)) {
        add(endType, endTag);
        advance(at + endSign.length + 2);
        trimAfter(endSign, isBlock);
        return;
      }
      const literal = literals.find(([, pattern]) => match(pattern));
      if (!literal) throw new TemplateSyntaxError(`unexpected character ${JSON.stringify(source[at])}`, line);
      const [type, pattern] = literal;
      const value = match(pattern)![0];
      if (type === 'operator') {
        if (closing[value]) open.push(closing[value]);
        else if (')]}'.includes(value) && open.pop() !== value) {
          throw new TemplateSyntaxError(`unexpected '${value}'`, line);
        }
      }
      if (type === 'string') add(type, withEscapes(value.slice(1, -1), line));
      else add(type, type === 'float' || type === 'integer' ? value.replaceAll('_', '') : value);
      advance(at + value.length);
    }
  };

  while (at < source.length) {
    const startsLine = at === 0 || source[at - 1] === '\n';
    const found = /\{[{%#]/g;
    found.lastIndex = at;
    const tag = found.exec(source);
    if (!tag) {
      add('data', source.slice(at));
      advance(source.length);
      break;
    }
    const kind = tag[0][1]!;
    const sign = /[-+]/.test(source[tag.index + 2] ?? '') ? source[tag.index + 2]! : '';
    const text = textBefore(source.slice(at, tag.index), sign, kind !== '{', startsLine);
    if (text !== '') add('data', text);
    advance(tag.index);
    if (kind === '#') {
      const end = source.indexOf('#}', at + 2 + sign.length);
      if (end < 0) throw new TemplateSyntaxError('missing end of comment tag', line);
      const last = end > at + 2 + sign.length ? source[end - 1]! : '';
      advance(end + 2);
      trimAfter(/[-+]/.test(last) ? last : '', true);
      continue;
    }
    const raw = kind === '%' ? match(RAW) : null;
    if (raw) {
      advance(RAW.lastIndex);
      if (raw[1] === '-') skipSpace();
      const end = match(ENDRAW);
      if (!end) throw new TemplateSyntaxError('missing end of raw directive', line);
      const startsRawLine = source[at - 1] === '\n';
      const content = textBefore(source.slice(at, end.index), end[1]!, true, startsRawLine);
      if (content !== '') add('data', content);
      advance(ENDRAW.lastIndex);
      trimAfter(end[2]!, true);
      continue;
    }
    add(kind === '%' ? 'begin' : 'print', tag[0]);
    advance(at + 2 + sign.length);
    readTag(kind === '%');
  }
  add('eof', '');
  return tokens;
}

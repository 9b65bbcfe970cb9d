/** Regular expressions of Python's `re`, in which PEFT's configs are written, as JavaScript's. */
import { GraftError } from '../../base/index.ts';

/**
 * The source of a Python regular expression as JavaScript reads it: named groups, `\A` and `\Z`, `{,n}` (up to n times, which is a text
 * in JavaScript), and a `]` that begins a class, which ends it in JavaScript.
 */
export function pythonSource(pattern: string): string {
  const parts = pattern.match(/\\[^]|\[\^?\]?(?:\\[^]|[^\]\\])*\]|\(\?P<|\(\?P=\w+\)|\(\?#[^)]*\)|\{,\d*\}|[^]/g) ?? [];
  return parts
    .map((part) => {
      if (part === '\\A') return '^';
      if (part === '\\Z') return '$';
      if (part === '(?P<') return '(?<';
      if (part.startsWith('(?P=')) return `\\k<${part.slice(4, -1)}>`;
      if (part.startsWith('(?#')) return '';
      if (part.startsWith('{,')) return `{0${part.slice(1)}`;
      return part.replace(/^(\[\^?)\]/, '$1\\]');
    })
    .join('');
}

/**
 * A Python regular expression that has to match a whole text, as `re.fullmatch`.
 * @param place what the error calls the field
 * @throws GraftError 'usage' for one that is not valid
 */
export function fullMatch(pattern: string, place: string): RegExp {
  const [, flags = '', rest = ''] = /^(?:\(\?([aimsu]+)\))?(.*)$/s.exec(pattern)!;
  try {
    return new RegExp(`^(?:${pythonSource(rest)})$`, flags.replaceAll(/[au]/g, ''));
  } catch (cause) {
    throw new GraftError('usage', `'${pattern}' is not a valid regular expression: ${(cause as Error).message}`, {
      place,
      cause,
    });
  }
}

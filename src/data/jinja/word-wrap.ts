import { SPACE } from './lexer.ts';

const W = '[\\p{L}\\p{N}_!"\'&.,?]';
const LETTER = '(?:[\\p{L}_])';
/** Stretches of white space, dashes, words that may end with a hyphen, and words, as Python's textwrap splits a line. */
const CHUNKS = new RegExp(
  `([\\t\\n\\v\\f\\r ]+|(?<=${W})-{2,}(?=[\\p{L}\\p{N}_])|[^\\t\\n\\v\\f\\r ]+?(?:-(?:(?<=${LETTER}{2}-)|(?<=${LETTER}-${LETTER}-))(?=${LETTER}-?${LETTER})|(?=[\\t\\n\\v\\f\\r ]|$)|(?<=${W})(?=-{2,}[\\p{L}\\p{N}_])))`,
  'u',
);

/** Python's `textwrap.wrap` without its changes of white space: the lines of a paragraph. */
export function wrap(paragraph: string, width: number, breakLongWords: boolean, breakOnHyphens: boolean): string[] {
  const pattern = breakOnHyphens ? CHUNKS : /([\t\n\v\f\r ]+)/u;
  const chunks = paragraph.split(pattern).filter((chunk) => chunk !== undefined && chunk !== '');
  chunks.reverse();
  const size = (chunk: string) => [...chunk].length;
  const isBlank = (chunk: string) => [...chunk].every((c) => SPACE.test(c));
  const lines: string[] = [];
  while (chunks.length > 0) {
    const line: string[] = [];
    let length = 0;
    if (isBlank(chunks.at(-1)!) && lines.length > 0) chunks.pop();
    while (chunks.length > 0 && length + size(chunks.at(-1)!) <= width) {
      const chunk = chunks.pop()!;
      line.push(chunk);
      length += size(chunk);
    }
    if (chunks.length > 0 && size(chunks.at(-1)!) > width) {
      const room = width < 1 ? 1 : width - length;
      if (breakLongWords) {
        const characters = [...chunks.at(-1)!];
        let end = room;
        const hyphen = breakOnHyphens && characters.length > room ? characters.slice(0, room).lastIndexOf('-') : -1;
        if (hyphen > 0 && characters.slice(0, hyphen).some((c) => c !== '-')) end = hyphen + 1;
        line.push(characters.slice(0, end).join(''));
        chunks[chunks.length - 1] = characters.slice(end).join('');
      } else if (line.length === 0) line.push(chunks.pop()!);
      length = line.reduce((sum, chunk) => sum + size(chunk), 0);
    }
    if (line.length > 0 && isBlank(line.at(-1)!)) line.pop();
    if (line.length > 0) lines.push(line.join(''));
  }
  return lines;
}

import { GraftError } from '../../base/index.ts';
import { BadRows } from '../bad-rows.ts';
import type { RawRecord } from '../record.ts';
import { linesOf, utf8 } from './lines.ts';
import type { Reader } from './reader.ts';

/**
 * Reads tagged words in the format of the CoNLL shared tasks: a line has a word and more columns, the last of which is its tag;
 * an empty line ends a sentence, `-DOCSTART-` begins a document. Spaces and tabs separate columns; other white space, such as
 * U+00A0 and U+3000, is a part of the word. All words have as many columns; a line before a sentence that begins with `#` and has
 * other ones is a comment.
 */
export const conll: Reader = async (file, limit, { note = () => {} }) => {
  const records: RawRecord[] = [];
  const bad = new BadRows();
  const width = await widthOf(file);
  let [tokens, tags]: [string[], string[]] = [[], []];
  let [line, firstLine, comments] = [0, 1, 0];
  const endSentence = () => {
    const place = `${file}:${firstLine}`;
    bad.try(() => requireWords(tokens, place));
    if (tokens.length > 0) records.push({ value: { tokens, tags }, place });
    [tokens, tags] = [[], []];
  };
  for await (const bytes of linesOf(file)) {
    const place = `${file}:${++line}`;
    const columns = bad.try(() => columnsOf(bytes, place));
    if (!columns) continue;
    if (columns.length === 0 || columns[0] === '-DOCSTART-') {
      endSentence();
      if (records.length === limit) break;
    } else if (columns.length !== width && tokens.length === 0 && isMarked(columns)) comments++;
    else {
      bad.try(() => requireWidth(columns, width, place));
      if (tokens.length === 0) firstLine = line;
      tokens.push(columns[0]!);
      tags.push(columns.at(-1)!);
    }
  }
  if (records.length < limit) endSentence();
  bad.refuse();
  if (comments > 0) note(`${file}: ${comments === 1 ? 'a comment is' : `${comments} comments are`} not read`);
  return records;
};

/** Whether a line may be a comment: a word may begin with this sign too. */
const isMarked = ([first]: readonly string[]) => first!.startsWith('#');

/** How many columns the words of a file have: those of its first line that is no comment for certain. */
async function widthOf(file: string): Promise<number> {
  let marked = 0;
  for await (const bytes of linesOf(file)) {
    const columns = splitColumns(bytes.toString('latin1'));
    if (columns.length === 0 || columns[0] === '-DOCSTART-') continue;
    if (!isMarked(columns)) return columns.length;
    marked ||= columns.length;
  }
  return marked;
}

const splitColumns = (text: string): string[] => text.split(/[ \t\r]+/).filter((column) => column !== '');

function columnsOf(bytes: Buffer, place: string): string[] {
  try {
    return splitColumns(utf8.decode(bytes));
  } catch (cause) {
    throw new GraftError('input', 'the line is not valid UTF-8', { place, hint: 'Save the file as UTF-8', cause });
  }
}

/** @throws GraftError 'input' for a line without a tag, or with other columns than the first word has */
function requireWidth(columns: readonly string[], width: number, place: string): void {
  if (columns.length === 1) throw new GraftError('input', 'the line has a word but no tag', { place });
  if (columns.length !== width)
    throw new GraftError('input', `the line has ${columns.length} columns, and the first word has ${width}`, {
      place,
      hint: 'Give each word the same columns, the last of which is its tag',
    });
}

/** @throws GraftError 'input' for a sentence whose first column counts its words, as that of CoNLL-U and CoNLL-X does */
function requireWords(tokens: readonly string[], place: string): void {
  const whole = tokens.filter((token) => !/^\d+[-.]\d+$/.test(token)); // 2-3 stands for a text of two words there
  if (whole.length < 3 || whole.some((token, i) => token !== String(i + 1))) return;
  throw new GraftError('input', 'the first column has the numbers of the words, not the words', {
    place,
    hint: 'Write the column of the words first, and that of the tags last',
  });
}

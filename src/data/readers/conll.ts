import { GraftError } from '../../base/index.ts';
import { BadRows } from '../bad-rows.ts';
import type { RawRecord } from '../record.ts';
import { linesOf, utf8 } from './lines.ts';
import type { Reader } from './reader.ts';

/**
 * Reads tagged words in the format of the CoNLL shared tasks: a line has a word and more columns, the last of which is its tag;
 * an empty line ends a sentence, `-DOCSTART-` begins a document. Spaces and tabs separate columns; other white space, such as
 * U+00A0 and U+3000, is a part of the word.
 */
export const conll: Reader = async (file, limit) => {
  const records: RawRecord[] = [];
  const bad = new BadRows();
  let [tokens, tags]: [string[], string[]] = [[], []];
  let [line, firstLine] = [0, 1];
  const endSentence = () => {
    if (tokens.length > 0) records.push({ value: { tokens, tags }, place: `${file}:${firstLine}` });
    [tokens, tags] = [[], []];
  };
  for await (const bytes of linesOf(file)) {
    const place = `${file}:${++line}`;
    const columns = bad.try(() => columnsOf(bytes, place));
    if (!columns) continue;
    if (columns.length === 0 || columns[0] === '-DOCSTART-') {
      endSentence();
      if (records.length === limit) break;
      continue;
    }
    if (tokens.length === 0) firstLine = line;
    tokens.push(columns[0]!);
    tags.push(columns.at(-1)!);
  }
  bad.refuse();
  if (records.length < limit) endSentence();
  return records;
};

function columnsOf(bytes: Buffer, place: string): string[] {
  let text: string;
  try {
    text = utf8.decode(bytes);
  } catch (cause) {
    throw new GraftError('input', 'the line is not valid UTF-8', { place, hint: 'Save the file as UTF-8', cause });
  }
  const columns = text.split(/[ \t\r]+/).filter((column) => column !== '');
  if (columns.length === 1 && columns[0] !== '-DOCSTART-')
    throw new GraftError('input', 'the line has a word but no tag', { place });
  return columns;
}

import { learnedFields } from './chat-rows.ts';
import { parseJsonExactly } from './exact-json.ts';

/** What of a row chat templates print. */
const printedColumns = [
  'messages',
  'conversations',
  'prompt',
  'completion',
  'tools',
  'functions',
  'documents',
  'chat_template_kwargs',
];

/** Reads JSON with the numbers that templates print; those that say what is learned are JavaScript's. */
export const parseExactly = (text: string): unknown => parseJsonExactly(text, learnedFields);

/** Whether a number of a row is an integer that JavaScript's cannot hold, as ids are. */
const isLost = (value: unknown) => Number.isInteger(value) && !Number.isSafeInteger(value);

/** A row with what templates print and large integers as its text has them (`exact`), and all else as JavaScript reads it. */
export function exactRow(row: unknown, exact: () => unknown): unknown {
  if (typeof row !== 'object' || row === null) return row;
  const columns = Object.entries(row).flatMap(([column, value]) => {
    const isPrinted = typeof value === 'object' && value !== null && printedColumns.includes(column);
    return isPrinted || isLost(value) ? [column] : [];
  });
  if (columns.length === 0) return row;
  const read = exact() as Record<string, unknown>;
  return { ...row, ...Object.fromEntries(columns.map((column) => [column, read[column]])) };
}

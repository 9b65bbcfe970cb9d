/** Shared by the generators of documents. */

export interface GeneratedFile {
  /** The path from the root of the checkout. */
  readonly path: string;
  readonly text: string;
}

const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

/** Returns a Markdown table; `|` in cells is escaped. */
export const markdownTable = (head: readonly string[], lines: readonly (readonly string[])[]): string =>
  [head, head.map(() => '---'), ...lines].map((line) => `| ${line.map(cell).join(' | ')} |`).join('\n');

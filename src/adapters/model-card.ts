/** The model card of an adapter, README.md: what it was trained on and how, how it did, and what its base is. */
import { existsSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { parseDocument, stringify } from 'yaml';
import { openGguf, writeText } from '../io/index.ts';

/** What a card says beside the methods and the base. */
export interface CardFacts {
  /** Names of the methods. */
  readonly methods: readonly string[];
  /** Path or id of the base. */
  readonly base: string;
  /** Directory or file of the base. */
  readonly basePath: string;
  /** Where the rows are from, and how many there are. */
  readonly data: string;
  /** Settings by name. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** Measurements on held-out rows: name, value with its interval, and what was counted. */
  readonly scores: readonly { readonly name: string; readonly value: string; readonly of: string }[];
}

/** The licence of a base as its own card or its GGUF file says it; undefined where neither does. */
function licenceOf(path: string): string | undefined {
  if (path.endsWith('.gguf')) {
    using source = openGguf(path);
    const licence = source.metadata.get('general.license');
    return typeof licence === 'string' ? licence : undefined;
  }
  const card = join(path, 'README.md');
  if (existsSync(card)) {
    const [, front] = /^---\r?\n(.*?)\r?\n---/s.exec(readFileSync(card, 'utf8')) ?? [];
    const licence: unknown = front === undefined ? undefined : parseDocument(front).get('license');
    if (typeof licence === 'string') return licence;
  }
  const file = ['LICENSE', 'LICENSE.txt', 'LICENSE.md', 'LICENCE'].find((name) => existsSync(join(path, name)));
  return file && `that of its file ${file}`;
}

const shown = (value: unknown): string =>
  typeof value === 'object' && value !== null ? JSON.stringify(value) : String(value);

/** Writes the card into the directory of an adapter, in place of the one that it was saved with. */
export function writeModelCard(dir: string, { methods, base, basePath, data, settings, scores }: CardFacts): void {
  const licence = licenceOf(basePath);
  const front = { base_model: base, library_name: 'peft', tags: ['graft', ...methods] };
  const table = (head: string, rows: readonly string[]) => [head, head.replaceAll(/[^|]+/g, ' --- '), ...rows];
  const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('\n', ' ');
  const lines = [
    `---\n${stringify(front)}---`,
    `# ${methods.join(' and ')} for ${basename(base)}\n`,
    'Trained with Graft. Load it with Graft (`graft generate --adapter`), or with PEFT where PEFT has the method.\n',
    `## Base\n\n${base}. Licence: ${licence ?? 'not stated in its files'}. The adapter is of use only together with it, under its terms.\n`,
    `## Data\n\n${data}\n`,
    '## Settings\n',
    ...table(
      '| Setting | Value |',
      Object.entries(settings).map(([name, value]) => `| ${name} | ${cell(shown(value))} |`),
    ),
    '\n## Scores on held-out rows\n',
    ...(scores.length === 0
      ? ['None were measured.']
      : table(
          '| Score | Value (95 % confidence interval) | Of |',
          scores.map(({ name, value, of }) => `| ${name} | ${value} | ${of} |`),
        )),
  ];
  writeText(join(dir, 'README.md'), `${lines.join('\n')}\n`);
}

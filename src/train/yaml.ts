import { existsSync, readFileSync } from 'node:fs';
import { type Document, LineCounter, parseDocument } from 'yaml';
import { GraftError, nearestPath } from '../base/index.ts';

/** Reads a YAML file. @throws GraftError 'usage' for a missing file, with the nearest name, or bad YAML, with line and column */
export function readYaml(file: string): Document {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    const near = nearestPath(file);
    throw new GraftError('usage', 'the recipe file cannot be read', {
      place: file,
      hint: existsSync(file) ? 'Check its permissions' : near ? `Did you mean ${near}?` : 'Check the path',
      cause,
    });
  }
  const document = parseDocument(text, { lineCounter: new LineCounter(), stringKeys: true });
  const [error] = document.errors;
  if (error) {
    const at = error.linePos?.[0];
    throw new GraftError(
      'usage',
      error.code === 'NON_STRING_KEY'
        ? 'the name of a field is a mapping or a list, and not a text'
        : `this is not valid YAML: ${error.message.split('\n')[0]!.replace(/ at line \d+, column \d+:$/, '')}`,
      {
        place: at ? `${file}:${at.line}:${at.col}` : file,
      },
    );
  }
  return document;
}

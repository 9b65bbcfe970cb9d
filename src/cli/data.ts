import { styleText } from 'node:util';
import { Command } from 'commander';
import { Session } from '../session/index.ts';
import { type RowPreview, readRecipe, type TaskPreview } from '../train/index.ts';
import { collect, examples, printJson, printNotes } from './shared.ts';
import { classesLine } from './train.ts';

export const data = () =>
  new Command('data')
    .description(
      'Show ten rows of a recipe as the model will see them, what of them is learned, and how long rows are. Writes nothing.',
    )
    .argument('<recipe>', 'a YAML file, as of graft train')
    .option('--set <a.b=value>', 'override a field of the recipe, the value in YAML; may be repeated', collect)
    .option('--json', 'print the rows as JSON')
    .addHelpText(
      'after',
      examples('graft data recipe.yaml', 'graft data recipe.yaml --set data.truncate=middle --set data.max_length=512'),
    )
    .action(async (file: string, { set, json }: { set?: string[]; json?: true }) => {
      const recipe = readRecipe(file, set);
      await using session = new Session();
      const tasks = await session.previewRows(recipe);
      if (json) return printJson({ tasks });
      for (const task of tasks) show(task);
    });

/** What is learned, in colour; where there is none, in brackets. */
function learned(text: string): string {
  const coloured = styleText('green', text, { stream: process.stdout });
  return coloured === text ? `⟦${text}⟧` : coloured;
}

/** Bars of a histogram are at most so wide. */
const barWidth = 40;

function show({ name, task, rows, heldOut, tokens, learned: count, examples, lengths, classes, notes }: TaskPreview) {
  for (const row of examples) console.log(`${heading(row)}\n${textOf(row)}\n`);
  const title = name === undefined ? task : `${name} (${task})`;
  const share = count > 0 ? `, ${count} of ${tokens} tokens learned` : `, ${tokens} tokens`;
  console.log(`${title}: ${rows} training rows, ${heldOut} held out${share}`);
  if (classes.length > 0) console.log(`classes: ${classesLine(classes)}`);
  const most = Math.max(...lengths.map((bin) => bin.rows));
  const widest = String(lengths.at(-1)?.to ?? 0).length;
  for (const { from, to, rows } of lengths) {
    const first = from === to ? ' '.repeat(widest + 1) : `${String(from).padStart(widest)}-`;
    const range = `${first}${String(to).padStart(widest)} tokens`;
    console.log(`  ${range} ${'█'.repeat(Math.ceil((barWidth * rows) / most))} ${rows}`);
  }
  printNotes(notes);
}

const heading = ({ place, tokens, label }: RowPreview) =>
  styleText('dim', `── ${place}, ${tokens} tokens${label === undefined ? '' : `, label ${label}`}`, {
    stream: process.stdout,
  });

const textOf = ({ pieces }: RowPreview) =>
  pieces.map(({ text, learned: isLearned }) => (isLearned ? learned(text) : text)).join('');

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from 'commander';
import { machines, page, readComparison, runComparison, table } from '../compare/index.ts';
import { examples } from './shared.ts';

export const compare = () =>
  new Command('compare')
    .description(
      'Train every method on one task under one budget, and show accuracy, cost and curves in a table and a page. A comparison that was stopped goes on.',
    )
    .argument(
      '<recipe>',
      'a recipe without method, with data.eval; its field compare says which methods (docs/compare.md)',
    )
    .option('--json', 'print the results as one JSON document')
    .addHelpText('after', examples('graft compare recipes/compare/emails.yaml', 'graft compare compare.yaml --json'))
    .action(async (file: string, { json }: { json?: true }) => {
      const comparison = readComparison(file);
      const results = await runComparison(comparison, (line) => console.error(line));
      const [data, picture] = [join(comparison.dir, 'comparison.json'), join(comparison.dir, 'comparison.html')];
      writeFileSync(data, JSON.stringify(results, null, 1));
      writeFileSync(picture, page(results));
      if (json) {
        console.log(JSON.stringify(results));
        return;
      }
      const { head, rows } = table(results);
      const widths = head.map((h, c) => Math.max(h.length, ...rows.map((row) => row[c]!.length)));
      for (const row of [head, ...rows]) {
        console.log(row.map((cell, c) => (c === 0 ? cell.padEnd(widths[c]!) : cell.padStart(widths[c]!))).join('  '));
      }
      console.log(`\n${machines(results.outcomes)}\n\n${picture}\n${data}`);
    });

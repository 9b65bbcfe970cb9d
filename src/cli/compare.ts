import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from 'commander';
import { page, readComparison, resultTables, runComparison } from '../compare/index.ts';
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
      for (const { title, head, rows } of resultTables(results)) {
        const widths = head.map((h, c) => Math.max(h.length, ...rows.map((row) => row[c]!.length)));
        console.log(title);
        for (const row of [head, ...rows])
          console.log(row.map((cell, c) => (c === 0 ? cell.padEnd(widths[c]!) : cell.padStart(widths[c]!))).join('  '));
        console.log();
      }
      console.log(`${picture}\n${data}`);
    });

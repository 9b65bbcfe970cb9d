import { join } from 'node:path';
import { Command } from 'commander';
import { page, readComparison, resultTables, writeResults } from '../compare/index.ts';
import { writeText } from '../io/index.ts';
import { Session } from '../session/index.ts';
import { abortOnSignals, examples, printJson } from './shared.ts';

export const compare = () =>
  new Command('compare')
    .description(
      'Train every method on one task under one budget, and show accuracy, cost and curves in a table and a page. A comparison that was stopped is resumed.',
    )
    .argument(
      '<recipe>',
      'a recipe without method, with data.eval; its field compare lists the methods (docs/compare.md)',
    )
    .option('--json', 'print the results as one JSON document')
    .addHelpText('after', examples('graft compare recipes/compare/emails.yaml', 'graft compare compare.yaml --json'))
    .action(async (file: string, { json }: { json?: true }) => {
      const comparison = readComparison(file);
      await using session = new Session();
      using stop = abortOnSignals('Stopping the comparison (run it again to resume)');
      const comparing = session.compare(comparison, { signal: stop.signal });
      for await (const line of comparing) console.error(line);
      const results = await comparing;
      const [data, picture] = [join(comparison.dir, 'comparison.json'), join(comparison.dir, 'comparison.html')];
      writeResults(data, results);
      writeText(picture, page(results));
      if (json) {
        return printJson(results);
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

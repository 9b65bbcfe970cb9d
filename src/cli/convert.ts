import { Command, Option } from 'commander';
import { adapterFormats, convertAdapter } from '../adapters/index.ts';
import { examples } from './shared.ts';

export const convert = () =>
  new Command('convert')
    .description('Convert an adapter between the formats of PEFT, AdapterHub and mlx-lm; its format is detected.')
    .argument('<adapter>', 'directory of the adapter')
    .addOption(new Option('--to <format>', 'the format to write').choices(adapterFormats).makeOptionMandatory())
    .requiredOption('--out <dir>', 'new directory for the converted adapter')
    .option('--json', 'print the result as JSON')
    .addHelpText(
      'after',
      examples(
        'graft convert out/adapter --to mlx --out out/mlx',
        'graft convert adapterhub-lora --to peft --out out/peft',
      ),
    )
    .action((adapter: string, { to, out, json }) => {
      const { from, layers } = convertAdapter(adapter, out, to);
      console.log(
        json ? JSON.stringify({ from, to, out, layers }) : `Wrote ${out}: ${layers} layers, from ${from} to ${to}`,
      );
    });

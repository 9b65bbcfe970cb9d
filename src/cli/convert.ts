import { Command, Option } from 'commander';
import { adapterFormats, adapterIn, convertAdapter } from '../adapters/index.ts';
import { resolveModel } from '../io/index.ts';
import { examples, printJson } from './shared.ts';

export const convert = () =>
  new Command('convert')
    .description(
      'Convert an adapter between the formats of PEFT, AdapterHub, mlx-lm and llama.cpp (gguf); its format is detected.',
    )
    .argument('<adapter>', 'directory of the adapter, or its .gguf file')
    .addOption(new Option('--to <format>', 'the format to write').choices(adapterFormats).makeOptionMandatory())
    .requiredOption('--out <dir>', 'new directory for the converted adapter; with gguf a new .gguf file')
    .option('--base <path>', 'the base model, whose config gguf needs; default: the one that the adapter names')
    .option('--json', 'print the result as JSON')
    .addHelpText(
      'after',
      examples(
        'graft convert out/adapter --to mlx --out out/mlx',
        'graft convert out/adapter --to gguf --base base.gguf --out adapter.gguf',
        'graft convert adapterhub-lora --to peft --out out/peft',
      ),
    )
    .action(async (adapter: string, { to, out, base, json }) => {
      const path = base === undefined ? undefined : await resolveModel(base);
      const { from, layers, leftOut } = convertAdapter(adapterIn(adapter), out, to, { base: path });
      if (json) return printJson({ from, to, out, layers, leftOut });
      console.log(`Wrote ${out}: ${layers} layers, from ${from} to ${to}`);
      if (leftOut.length > 0)
        console.log(`Left out, since ${to} has no place for them: the settings of ${leftOut.join(', ')}`);
    });

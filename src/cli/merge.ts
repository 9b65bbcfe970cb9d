import { Command, Option } from 'commander';
import { packingModes } from '../quant/index.ts';
import { Session } from '../session/index.ts';
import { examples, printJson } from './shared.ts';

export const merge = () =>
  new Command('merge')
    .description('Add an adapter to the weights of its base and write the whole model as a Hugging Face directory.')
    .requiredOption('--model <path>', 'the base: a Hugging Face directory, a .gguf file, or a hub id')
    .requiredOption('--adapter <dir>', 'the adapter to merge')
    .requiredOption('--out <dir>', 'new directory for the merged model')
    .addOption(
      new Option('--dtype <type>', 'type of the weights that are written')
        .choices(['float32', 'bfloat16', 'float16'])
        .default('float32'),
    )
    .addOption(
      new Option(
        '--quantize <how>',
        'compare base with adapter and merged model as they are when quantised while loading',
      )
        .choices(packingModes)
        .default('none'),
    )
    .option('--json', 'print the result as JSON')
    .addHelpText(
      'after',
      examples(
        'graft merge --model base.gguf --adapter out/adapter --out merged',
        'graft merge --model org/name --adapter out/adapter --out merged --dtype bfloat16',
        'graft merge --model org/name --adapter out/adapter --out merged --quantize nf4',
      ),
    )
    .action(async ({ model, json, ...options }) => {
      await using session = new Session();
      const result = await session.merge(model, options);
      if (json) return printJson(result);
      const { out, maxDrift, meanDrift, tokens, changed, predictions, notCopied } = result;
      const logits = options.quantize === 'none' ? 'its logits' : `held as ${options.quantize}, its logits`;
      console.log(
        `Wrote ${out}; ${logits} differ from those of base and adapter by at most ${maxDrift.toExponential(1)} (mean ${meanDrift.toExponential(1)}) over ${tokens} tokens, and ${changed} of ${predictions} predictions changed`,
      );
      if (notCopied.length > 0) console.log(`Not copied from the base: ${notCopied.join(', ')}`);
    });

import { Command, Option } from 'commander';
import { Session } from '../session/index.ts';
import { examples, logLine } from './shared.ts';

export const merge = () =>
  new Command('merge')
    .description('Fold an adapter into its base and write the whole model as a Hugging Face directory.')
    .requiredOption('--model <path>', 'the base: a Hugging Face directory, a .gguf file, or a hub id')
    .requiredOption('--adapter <dir>', 'the adapter to fold in')
    .requiredOption('--out <dir>', 'directory for the merged model; it is replaced at once or not at all')
    .addOption(
      new Option('--dtype <type>', 'how the weights are written')
        .choices(['float32', 'bfloat16', 'float16'])
        .default('float32'),
    )
    .addOption(
      new Option('--quantize <how>', 'measure on a base that is packed at load, with the merged model packed so too')
        .choices(['none', 'int8', 'nf4'])
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
    .action(async (options) => {
      await using session = new Session();
      const result = await session.run('merge', options, logLine);
      if (options.json) return console.log(JSON.stringify(result));
      const { maxDrift, meanDrift, tokens, changed, predictions } = result;
      const held = options.quantize === 'none' ? 'its' : `held as ${options.quantize} its`;
      console.log(
        `Wrote ${options.out}; ${held} logits differ from base and adapter apart by at most ${maxDrift.toExponential(1)} (mean ${meanDrift.toExponential(1)}) over ${tokens} tokens, and ${changed} of ${predictions} predictions became another`,
      );
    });

import { Command } from 'commander';
import { Session } from '../session/index.ts';
import { examples, logLine } from './shared.ts';

export const merge = () =>
  new Command('merge')
    .description('Fold an adapter into its base and write the whole model as a Hugging Face directory.')
    .requiredOption('--model <path>', 'the base')
    .requiredOption('--adapter <dir>', 'the adapter')
    .requiredOption('--out <dir>', 'where the merged model goes')
    .option('--dtype <type>', 'float32, bfloat16 or float16', 'float32')
    .option('--json', 'print the result as JSON', false)
    .addHelpText('after', examples('graft merge --model base.gguf --adapter out/adapter --out merged'))
    .action(async (options) => {
      await using session = new Session();
      const result = await session.run('merge', options, logLine);
      console.log(
        options.json
          ? JSON.stringify(result)
          : `Wrote ${options.out}; its logits differ from base and adapter apart by at most ${result.maxDrift.toExponential(1)} (mean ${result.meanDrift.toExponential(1)}) over ${result.tokens} tokens`,
      );
    });

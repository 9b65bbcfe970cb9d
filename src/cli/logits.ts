import { Command } from 'commander';
import { Session } from '../session/index.ts';
import { examples, logLine } from './shared.ts';

export const logits = () =>
  new Command('logits')
    .description('Write the full logits of rows of token ids, for comparison with another implementation.')
    .requiredOption('--model <path>', 'a Hugging Face directory, a .gguf file, or a hub id')
    .option('--adapter <dir>', 'an adapter on top')
    .requiredOption('--ids <file>', 'JSON: [[int]], one list a row')
    .requiredOption('--out <file>', 'safetensors: logits.0 float32 [T, V], and so on')
    .option('--quantize <how>', 'none, keep, int8 or nf4', 'none')
    .option('--threads <n>', 'processor threads', Number)
    .option('--json', 'print the result as JSON', false)
    .addHelpText(
      'after',
      examples(
        'graft logits --model dir --ids ids.json --out out.safetensors',
        'graft logits --model base.gguf --adapter out/adapter --ids ids.json --out out.safetensors',
      ),
    )
    .action(async (options) => {
      await using session = new Session();
      const result = await session.run('logits', options, logLine);
      console.log(options.json ? JSON.stringify(result) : `Wrote ${result.rows} rows to ${options.out}`);
    });

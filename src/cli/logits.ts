import { Session } from '../session/index.ts';
import { examples, logLine, onModel } from './shared.ts';

export const logits = () =>
  onModel('logits', 'Write the full logits of rows of token ids, for comparison with another implementation.', 'none')
    .requiredOption('--ids <file>', 'JSON file of token ids, [[int]]: one list a row')
    .requiredOption('--out <file>', 'safetensors file to write: logits.0 of float32 [T, V], logits.1, and so on')
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

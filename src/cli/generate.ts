import { Session } from '../session/index.ts';
import { count, examples, logLine, onModel } from './shared.ts';

export const generate = () =>
  onModel('generate', 'Continue a prompt, or answer it as a chat turn.', 'keep')
    .requiredOption('--prompt <text>', 'what to continue or answer')
    .option('--chat', "put the prompt into the model's chat template")
    .option('--system <text>', 'system message of the chat')
    .option('--max-new-tokens <n>', 'length of the answer at most', count, 256)
    .option('--temperature <t>', '0: always the likeliest token; 1: as the model says; above: more daring', Number, 0)
    .option('--top-k <k>', 'choose among the k likeliest', Number)
    .option('--top-p <p>', 'choose among the likeliest that make up this share', Number)
    .option('--min-p <p>', 'leave out what is less likely than this share of the likeliest', Number)
    .option('--repetition-penalty <x>', 'above 1: tokens seen already are less likely', Number)
    .option('--stop <text...>', 'end before this text')
    .option('--seed <n>', 'of the sampling: the same seed gives the same answer', Number, 0)
    .addHelpText(
      'after',
      examples(
        'graft generate --model base.gguf --chat --prompt "Name three rivers."',
        'graft generate --model base.gguf --adapter out/adapter --chat --system "Answer in French." --prompt "Hello"',
        'graft generate --model dir --adapter out/adapter --prompt "Once" --temperature 0.8 --top-p 0.9',
      ),
    )
    .action(async (options) => {
      await using session = new Session();
      const result = await session.run('generate', options, (event) => {
        if (event.type === 'text' && !options.json) process.stdout.write((event as { text: string }).text);
        else logLine(event);
      });
      if (options.json) console.log(JSON.stringify(result));
      else console.log();
    });

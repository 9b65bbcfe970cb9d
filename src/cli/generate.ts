import { count, examples, onModel, printJson, printNotes, withModel } from './shared.ts';

export const generate = () =>
  onModel('generate', 'Continue a prompt, or answer it as a chat turn.')
    .requiredOption('--prompt <text>', 'what to continue or answer')
    .option('--chat', "put the prompt into the model's chat template")
    .option('--system <text>', 'system message; implies --chat')
    .option('--continue <text>', 'beginning of the answer, which is continued; implies --chat')
    .option('--max-new-tokens <n>', 'maximum number of tokens to generate', count, 256)
    .option(
      '--temperature <t>',
      '0: greedy decoding; 1: the probabilities of the model; above 1: more random',
      Number,
      0,
    )
    .option('--top-k <k>', 'sample from the k likeliest tokens', Number)
    .option('--top-p <p>', 'sample from the likeliest tokens that have this probability together', Number)
    .option('--min-p <p>', 'leave out tokens less likely than this share of the likeliest', Number)
    .option('--repetition-penalty <x>', 'above 1: tokens that occurred before become less likely', Number)
    .option('--stop <text...>', 'stop before this text, which may be a special token')
    .option('--seed <n>', 'seed of the sampling: the same seed gives the same answer; default: 0', Number)
    .addHelpText(
      'after',
      examples(
        'graft generate --model base.gguf --chat --prompt "Name three rivers."',
        'graft generate --model base.gguf --adapter out/adapter --chat --system "Answer in French." --prompt "Hello"',
        'graft generate --model dir --adapter out/adapter --prompt "Once" --temperature 0.8 --top-p 0.9',
      ),
    )
    .action(async ({ prompt, continue: begun, ...options }) => {
      await withModel(options, async (model, settings) => {
        printNotes(model.info.notes);
        const turns = [
          { role: 'user', content: prompt },
          { role: 'assistant', content: begun },
        ];
        const answer =
          begun === undefined
            ? model.generate(prompt, settings)
            : model.generate(turns, { ...settings, continueFinalMessage: true });
        if (options.json) return printJson(await answer);
        for await (const piece of answer) process.stdout.write(piece);
        console.log();
      });
    });

import { Command } from 'commander';
import { resolveModel } from '../io/index.ts';
import { examples, mebibytes } from './shared.ts';

export const pull = () =>
  new Command('pull')
    .description('Download a model from the hub into the cache, or check the copy that is there.')
    .argument('<model>', 'org/name, org/name@revision, org/name/file.gguf or org/name@revision/file.gguf')
    .option('--json', 'print the path as JSON')
    .addHelpText(
      'after',
      examples(
        'graft pull HuggingFaceTB/SmolLM2-135M-Instruct',
        'graft pull HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF/smollm2-1.7b-instruct-q4_k_m.gguf',
      ),
    )
    .action(async (model: string, { json }: { json?: true }) => {
      let shown = 0;
      const path = await resolveModel(model, {
        refresh: true,
        progress: (p) => {
          if (performance.now() - shown < 500 || !process.stderr.isTTY) return;
          shown = performance.now();
          process.stderr.write(`\r\x1b[2K${mebibytes(p.received)} of ${mebibytes(p.total)}`);
        },
      });
      console.log(json ? JSON.stringify({ path }) : path);
    });

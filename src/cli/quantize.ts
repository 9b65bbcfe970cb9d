import { Command, Option } from 'commander';
import { exportFormats } from '../models/index.ts';
import { Session } from '../session/index.ts';
import { examples, printJson, printWritten, showTensors, writtenOptions } from './shared.ts';

export const quantize = () =>
  writtenOptions(
    new Command('quantize')
      .description(
        'Round the weights of a model to a format, without training: a GGUF file for llama.cpp, or a directory with integers and scales. Norms and biases stay float32.',
      )
      .requiredOption('--model <path>', 'the model: a Hugging Face directory, a .gguf file, or a hub id')
      .addOption(
        new Option(
          '--to <format>',
          'of the linear layers of the blocks: int2 to int8 for a directory, all others for a .gguf file',
        )
          .choices(exportFormats)
          .makeOptionMandatory(),
      )
      .requiredOption('--out <path>', 'new .gguf file, or new directory'),
  )
    .addOption(
      new Option('--dtype <type>', 'directory: type of the weights that are not integers')
        .choices(['float32', 'bfloat16', 'float16'])
        .default('float32'),
    )
    .option('--json', 'print the result as JSON')
    .addHelpText(
      'after',
      examples(
        'graft quantize --model org/name --to q4_0 --out model.gguf',
        'graft quantize --model org/name --to q4_k --embedding q6_k --out model.gguf',
        'graft quantize --model org/name --to int4 --group-size 32 --out model-int4',
      ),
    )
    .action(async ({ model, json, ...options }) => {
      await using session = new Session();
      const result = await showTensors(session.quantize(model, options));
      if (json) printJson(result);
      else printWritten(result, 'the model');
    });

import { Command, Option } from 'commander';
import { exportFormats } from '../models/index.ts';
import { packingModes } from '../quant/index.ts';
import { Session } from '../session/index.ts';
import { examples, modelOf, printJson, printWritten, showTensors, writtenOptions } from './shared.ts';

export const merge = () =>
  writtenOptions(
    new Command('merge')
      .description(
        'Add an adapter to the weights of its base and write the whole model: as a Hugging Face directory, or with --to as a GGUF file or a directory with integers.',
      )
      .option(
        '--model <path>',
        'the base: a Hugging Face directory, a .gguf file, or a hub id; default: the one that the adapter names',
      )
      .requiredOption('--adapter <dir>', 'the adapter to merge, or the directory of the run that made it')
      .requiredOption('--out <path>', 'new directory for the merged model, or new .gguf file')
      .addOption(
        new Option(
          '--to <format>',
          'round the merged weights of the linear layers once: int2 to int8 for a directory, all others for a .gguf file',
        ).choices(exportFormats),
      ),
  )
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
        'graft merge --model org/name --adapter out/adapter --to q4_0 --out model.gguf',
        'graft merge --model org/name --adapter out/adapter --to int4 --group-size 32 --out merged-int4',
        'graft merge --model org/name --adapter out/adapter --out merged --quantize nf4',
      ),
    )
    .action(async ({ model, json, ...options }) => {
      await using session = new Session();
      const result = await showTensors(session.merge(modelOf(model, options.adapter), options));
      if (json) return printJson(result);
      const isHeld = options.quantize !== 'none';
      printWritten(result, 'base and adapter', isHeld ? `held as ${options.quantize}, its` : 'its');
    });

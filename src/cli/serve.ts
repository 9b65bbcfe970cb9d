import { Command } from 'commander';
import { readKeys, type ServerOptions, serve as startServer } from '../serve/index.ts';
import {
  abortOnSignals,
  activationOption,
  bytes,
  collect,
  count,
  countOrNone,
  deviceHelp,
  examples,
  notNegative,
  positive,
  printJson,
  quantizeOption,
} from './shared.ts';

interface Options
  extends Omit<ServerOptions, 'allowAdaptersFrom' | 'apiKeys' | 'limits' | 'kvMemory' | 'adapterMemory'> {
  readonly allowAdaptersFrom?: string[];
  readonly apiKeyFile?: string;
  readonly kvMemory?: number;
  readonly adapterMemory?: number;
  readonly requestsPerMinute?: number;
  readonly requestsPerKey?: number;
  readonly json?: true;
}

export const serve = () =>
  new Command('serve')
    .description(
      "Serve a model and its adapters over HTTP, as OpenAI's API has it. Requests for all of them share the passes of one base.",
    )
    .requiredOption('--model <path>', 'a Hugging Face directory, a .gguf file, or a hub id')
    .option('--adapters <dir>', 'a folder whose sub-directories are adapters, each a model of its name; it is watched')
    .option('--model-name <name>', "name of the base in requests; default: the last part of the model's path")
    .addOption(quantizeOption())
    .option('--device <name>', deviceHelp)
    .addOption(activationOption())
    .option('--host <address>', 'address to listen at; one that others reach needs --api-key-file', '127.0.0.1')
    .option('--port <n>', 'port; 0: one that is free', countOrNone, 8000)
    .option('--api-key-file <file>', 'keys, one a line; each request has to carry one of them')
    .option(
      '--allow-adapters-from <dir>',
      'another folder that requests may load adapters from; may be repeated',
      collect,
    )
    .option('--rescan-seconds <s>', 'time between two looks at the folder of adapters; default: 2', positive)
    .option('--max-batch-tokens <n>', 'tokens of one pass of the model at most; default: 256', count)
    .option('--max-running <n>', 'answers that are generated at a time at most; default: 64', count)
    .option('--max-queue <n>', 'requests that wait at most; one more is answered with 429; default: 256', count)
    .option('--kv-memory <size>', 'memory for keys and values, such as 2GB; default: a quarter of what is free', bytes)
    .option('--adapter-memory <size>', 'memory for adapters; default: an eighth of what is free', bytes)
    .option('--pins <name...>', 'adapters that are loaded at the start and stay in memory')
    .option('--requests-per-key <n>', 'requests of one key that run at a time', count)
    .option('--requests-per-minute <n>', 'requests of one key in a minute; default: as many as come', count)
    .option(
      '--drain-seconds <s>',
      'time that answers have to end when the server is stopped; then they are cut',
      notNegative,
      30,
    )
    .option('--threads <n>', 'processor threads; default: all cores', count)
    .option('--json', 'print the start as one line of JSON')
    .addHelpText(
      'after',
      examples(
        'graft serve --model base.gguf --adapters adapters',
        'graft serve --model dir --adapters adapters --port 9000 --kv-memory 2GB',
        'graft serve --model dir --host 0.0.0.0 --api-key-file keys.txt --requests-per-minute 60',
        `curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n      -d '{"model": "NAME", "messages": [{"role": "user", "content": "Hello"}]}'`,
      ),
    )
    .action(async ({ apiKeyFile, requestsPerKey, requestsPerMinute, json, ...options }: Options) => {
      const apiKeys = apiKeyFile === undefined ? [] : readKeys(apiKeyFile);
      using stop = abortOnSignals('Ending: answers that run are completed. Press again to stop at once.');
      const server = await startServer({ ...options, apiKeys, limits: { requestsPerKey, requestsPerMinute } });
      const { url, host, port, base, adapters } = server;
      if (json) printJson({ type: 'listening', url, host, port, model: base, adapters });
      else {
        const more = adapters.length === 1 ? '1 adapter' : `${adapters.length} adapters`;
        console.log(`Serving ${base} with ${more} at ${url}/v1`);
      }
      await new Promise<void>((resolve) => {
        if (stop.signal.aborted) resolve();
        stop.signal.addEventListener('abort', () => resolve());
      });
      await server.close();
    });

import { Argument, Command } from 'commander';
import { GraftError } from '../base/index.ts';
import {
  arrivals,
  type LoadShape,
  type LoadSummary,
  modelsOf,
  type Percentiles,
  readKeys,
  runLoad,
  summarize,
} from '../serve/index.ts';
import { abortOnSignals, count, countOrNone, examples, notNegative, positive, printJson } from './shared.ts';

interface Options extends Omit<LoadShape, 'models'> {
  readonly url: string;
  readonly models?: string[];
  readonly apiKeyFile?: string;
  readonly json?: true;
}

export const bench = () =>
  new Command('bench')
    .description(
      'Measure a server under load. Requests arrive at random whether or not earlier ones are answered, and ask for its models by the law of Zipf.',
    )
    .addArgument(new Argument('<what>', 'what is measured').choices(['serve']))
    .option('--url <url>', 'the server, without /v1', 'http://127.0.0.1:8000')
    .option('--models <name...>', 'models to ask for, the most popular first; default: all that the server has')
    .option('--rate <n>', 'requests a second, on average (Poisson)', positive, 1)
    .option('--seconds <s>', 'how long requests arrive', positive, 60)
    .option('--zipf <a>', 'model i is asked for in proportion to 1 / i^a; 0: all alike', notNegative, 1.1)
    .option('--prompt-words <n>', 'words of a prompt', count, 128)
    .option('--max-tokens <n>', 'tokens of an answer at most', count, 64)
    .option('--seed <n>', 'the same seed sends the same requests at the same times', countOrNone, 0)
    .option('--api-key-file <file>', 'its first key is sent')
    .option('--json', 'print the result as JSON')
    .addHelpText(
      'after',
      examples(
        'graft bench serve --rate 4 --seconds 120',
        'graft bench serve --url http://10.0.0.2:8000 --api-key-file keys.txt --models base legal medical --json',
      ),
    )
    .action(async (_what: 'serve', { url, apiKeyFile, json, models, ...shape }: Options) => {
      using stop = abortOnSignals('Stopping: what was sent is summed up.');
      const apiKey = apiKeyFile === undefined ? undefined : readKeys(apiKeyFile)[0];
      const target = { url: url.replace(/\/(v1\/?)?$/, ''), apiKey, signal: stop.signal };
      const names =
        models ??
        (await modelsOf(target).catch((cause: Error) => {
          throw new GraftError('environment', `the server does not list its models: ${cause.message}`, {
            place: url,
            hint: 'Start it with graft serve',
            cause,
          });
        }));
      const load = arrivals({ ...shape, models: names });
      if (load.length === 0)
        throw new GraftError('usage', `no request arrives in ${shape.seconds} s at ${shape.rate} a second`, {
          place: '--seconds',
          hint: 'Raise --seconds or --rate',
        });
      const start = performance.now();
      const results = await runLoad(target, load);
      const summary = summarize(results, (performance.now() - start) / 1000);
      if (json) printJson({ bench: 'serve', url: target.url, ...shape, ...summary });
      else print(summary);
      if (results.length > 0 && summary.completed === 0)
        throw new GraftError('environment', 'no request was answered', {
          place: url,
          data: { failed: summary.failed },
        });
    });

function print(summary: LoadSummary): void {
  const { requests, completed, failed, seconds, models } = summary;
  console.log(`${completed} of ${requests} requests for ${models} models answered in ${seconds} s`);
  for (const [code, times] of Object.entries(failed)) console.log(`failed ${times} times: ${code}`);
  console.log(
    `${summary.requestsPerSecond} requests/s, ${summary.newTokensPerSecond} tokens/s generated, ${summary.promptTokensPerSecond} tokens/s of prompts`,
  );
  const line = (name: string, times: Percentiles | null) => {
    if (times)
      console.log(`${name}: median ${ms(times.p50)}, 95 % below ${ms(times.p95)}, 99 % below ${ms(times.p99)}`);
  };
  line('time to first token', summary.timeToFirstToken);
  line('time between tokens', summary.timeBetweenTokens);
  line('time to the end', summary.timeToEnd);
}

const ms = (seconds: number): string => `${Math.round(seconds * 1000)} ms`;

import { Command } from 'commander';
import { Session } from '../session/index.ts';
import { readRecipe, type TrainEvent } from '../train/index.ts';
import { abortOnSignals, duration, examples, mebibytes, printJson } from './shared.ts';

const collect = (value: string, all: string[] = []) => [...all, value];

export const train = () =>
  new Command('train')
    .description('Fine-tune a model as a recipe says; a run that was stopped resumes from its last checkpoint.')
    .argument('<recipe>', 'a YAML file; docs/recipe.md lists its fields, recipes/ has examples')
    .option('--set <a.b=value>', 'override a field of the recipe, the value in YAML; may be repeated', collect)
    .option('--fresh', 'start over; what the run directory holds is moved to previous-N/ in it')
    .option('--json', 'print events as JSON lines; the last line is the result')
    .addHelpText(
      'after',
      examples(
        'graft train recipes/chat.yaml --set model=base.gguf --set data.train=rows.jsonl',
        'graft train recipe.yaml --set train.lr=1e-4 --set run.dir=out2',
        'graft train recipe.yaml --json | tail -1',
      ),
    )
    .action(async (file: string, options: { set?: string[]; fresh?: true; json?: true }) => {
      const recipe = readRecipe(file, options.set);
      await using session = new Session();
      using stop = abortOnSignals('Stopping after this step, with a checkpoint (press again to stop at once)');
      const training = session.train(recipe, { fresh: options.fresh === true, signal: stop.signal });
      const show = options.json ? printJson : progress();
      for await (const event of training) show(event);
      const result = await training;
      if (options.json) return printJson(result);
      console.log(`Saved ${result.adapter}`);
      console.log(
        `${result.losses.length} steps in ${duration(result.seconds)}, ${result.tokensPerSecond.toFixed(0)} tokens/s, peak memory ${result.peakRssMb.toFixed(0)} MB`,
      );
    });

/** The metrics of a measurement. */
const measured = ({ loss, metrics }: Extract<TrainEvent, { type: 'eval' }>): string =>
  metrics.length === 0
    ? `perplexity ${Math.exp(loss).toFixed(2)}`
    : metrics.map(({ name, value, count, of }) => `${name} ${value.toFixed(4)} of ${count} ${of}`).join(', ');

/** Shows events on stderr: one line that is rewritten on a terminal, elsewhere a line every few seconds. */
function progress(): (event: TrainEvent) => void {
  const terminal = process.stderr.isTTY;
  let start = { steps: 0, at: 0, first: 0 };
  let shown = 0;
  const line = (text: string, keep = false) => {
    if (!terminal) console.error(text);
    else process.stderr.write(`\r\x1b[2K${text}${keep ? '\n' : ''}`);
  };
  return (event) => {
    const now = performance.now();
    switch (event.type) {
      case 'start':
        start = { steps: event.steps, at: now, first: event.step };
        line(
          `${event.rows} training rows, ${event.heldOut} held out; ${event.trainable.toLocaleString('en')} of ${event.parameters.toLocaleString('en')} parameters are trained (${((100 * event.trainable) / event.parameters).toFixed(2)} %); up to ${event.microTokens} tokens in memory at a time, ${event.threads} threads, ${event.precision} products`,
          true,
        );
        if (event.step > 0) line(`Resumed after step ${event.step}`, true);
        return;
      case 'step': {
        if (!terminal && now - shown < 5000 && event.step < start.steps) return;
        shown = now;
        const done = event.step - start.first;
        const left = ((now - start.at) / 1000 / done) * (start.steps - event.step);
        line(
          `step ${event.step}/${start.steps}  ${event.task ? `${event.task} ` : ''}loss ${event.loss.toFixed(4)}  ${(event.tokens / event.seconds).toFixed(0)} tokens/s  ${mebibytes(process.memoryUsage.rss())}  ${duration(left)} left`,
        );
        return;
      }
      case 'eval':
        line(
          `step ${event.step}: ${event.task ? `${event.task}, ` : ''}held-out loss ${event.loss.toFixed(4)} (${measured(event)})${event.best ? ', the best so far' : ''}`,
          true,
        );
        return;
      case 'warning':
        line(`note: ${event.message}`, true);
        return;
      case 'end':
        line(
          event.reason === 'early-stop'
            ? `early stopping at step ${event.step}: the held-out loss no longer falls`
            : `done after ${event.step} steps`,
          true,
        );
    }
  };
}

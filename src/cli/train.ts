import { Command } from 'commander';
import { Session } from '../session/index.ts';
import { readRecipe, type TrainEvent } from '../train/index.ts';
import { duration, examples, logLine, mebibytes } from './shared.ts';

const collect = (value: string, all: string[] = []) => [...all, value];

export const train = () =>
  new Command('train')
    .description('Fine-tune a model as a recipe says; a run that was stopped goes on from its last checkpoint.')
    .argument('<recipe>', 'a YAML file; docs/recipe.md lists its fields, recipes/ has some to begin with')
    .option('--set <a.b=value>', 'override a field of the recipe, the value in YAML; may be repeated', collect)
    .option('--fresh', 'begin anew; what the run directory holds is moved aside')
    .option('--json', 'print events as JSON lines, the last line being the result')
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
      using _ = stopOnSignals(session);
      const show = options.json ? (event: object) => console.log(JSON.stringify(event)) : progress();
      const result = await session.run('train', { recipe, fresh: options.fresh === true }, (event) =>
        event.type === 'log' ? logLine(event) : show(event as TrainEvent),
      );
      if (options.json) {
        console.log(JSON.stringify(result));
        return;
      }
      console.log(`Saved ${result.adapter}`);
      console.log(
        `${result.losses.length} steps in ${duration(result.seconds)}, ${result.tokens_per_s.toFixed(0)} tokens/s, at most ${result.peak_rss_mb.toFixed(0)} MB`,
      );
    });

/** What a measurement comes to beside its loss. */
const measured = ({ loss, metrics }: Extract<TrainEvent, { type: 'eval' }>): string =>
  metrics.length === 0
    ? `perplexity ${Math.exp(loss).toFixed(2)}`
    : metrics.map(({ name, value, count, of }) => `${name} ${value.toFixed(4)} of ${count} ${of}`).join(', ');

/** A line that is rewritten on a terminal; a line every so often elsewhere. */
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
          `${event.rows} rows to learn from, ${event.heldOut} held out; ${event.trainable.toLocaleString('en')} of ${event.parameters.toLocaleString('en')} parameters train (${((100 * event.trainable) / event.parameters).toFixed(2)} %); up to ${event.microTokens} tokens in memory at a time, ${event.threads} threads, ${event.precision} products`,
          true,
        );
        if (event.step > 0) line(`Going on after step ${event.step}`, true);
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
            ? `stopped at step ${event.step}: the held-out loss no longer falls`
            : `done after ${event.step} steps`,
          true,
        );
    }
  };
}

/** What is pressed within this many milliseconds counts once: a shell and a parent process may send the same signal. */
const SAME_PRESS = 1000;

/** Ctrl-C (and SIGTERM) lets the step end and takes a checkpoint; pressed again, the process ends at once. */
function stopOnSignals(session: Session): Disposable {
  let asked: number | undefined;
  const stop = () => {
    const now = performance.now();
    if (asked !== undefined && now - asked > SAME_PRESS) process.exit(130);
    if (asked === undefined) console.error('Stopping after this step, with a checkpoint (once more: at once)');
    asked ??= now;
    session.stop();
  };
  const signals = ['SIGINT', 'SIGTERM'] as const;
  for (const signal of signals) process.on(signal, stop);
  return {
    [Symbol.dispose]() {
      for (const signal of signals) process.off(signal, stop);
    },
  };
}

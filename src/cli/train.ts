import { Command } from 'commander';
import { freeMemory } from '../base/index.ts';
import { launchEnvironment } from '../distributed/index.ts';
import { launcherVariable, Session } from '../session/index.ts';
import type { ClassCount, Metric } from '../tasks/index.ts';
import { type RunMemory, readRecipe, type TrainEvent, type TrainResult } from '../train/index.ts';
import { abortOnSignals, collect, deviceHelp, duration, examples, mebibytes, positive, printJson } from './shared.ts';

/** The argument and options of commands that run a recipe, after options of their own. */
export const recipeOptions = (command: Command) =>
  command
    .argument('<recipe>', 'a YAML file; docs/recipe.md lists its fields, recipes/ has examples')
    .option('--set <a.b=value>', 'override a field of the recipe, the value in YAML; may be repeated', collect)
    .option('--fresh', 'start over; what the run directory holds is kept in previous-N/ in it')
    .option('--device <name>', `short for --set train.device=<name>: ${deviceHelp}`)
    .option('--more-epochs <n>', 'go on with a finished run for so many passes over the rows', positive)
    .option('--json', 'print events as JSON lines; the last line is the result');

/** What `recipeOptions` reads. */
export interface RecipeFlags {
  set?: string[];
  device?: string;
  fresh?: true;
  moreEpochs?: number;
  json?: true;
}

/** The values of `--set`, with that of `--device`. */
export const withDevice = (set: readonly string[] = [], device?: string): string[] => [
  ...set,
  ...(device === undefined ? [] : [`train.device=${device}`]),
];

export const train = () =>
  recipeOptions(
    new Command('train').description(
      'Fine-tune a model as a recipe says. A run that was stopped resumes from its last checkpoint; a finished one shows its result.',
    ),
  )
    .addHelpText(
      'after',
      examples(
        'graft train recipes/chat.yaml --set model=base.gguf --set data.train=rows.jsonl',
        'graft train recipe.yaml --set train.lr=1e-4 --set run.dir=out2',
        'graft train recipe.yaml --more-epochs 1',
        'graft train recipe.yaml --json | tail -1',
      ),
    )
    .action(async (file: string, { set, device, json, ...options }: RecipeFlags) => {
      const recipe = readRecipe(file, withDevice(set, device));
      const placement = launchEnvironment();
      await using session = new Session();
      using stop = abortOnSignals('Stopping after this step, with a checkpoint (press again to stop at once)');
      stopWithLauncher();
      const training = session.train(recipe, { ...options, placement, signal: stop.signal });
      if (!placement?.rank) return await showTraining(training, json);
      // Of several processes, one shows what all do; on other machines the first one has the result.
      const result = await training;
      if (json && placement.localRank === 0) printJson(result);
    });

/** Stops this process, with a checkpoint, when the launcher that started it was killed: nobody else could stop it. */
function stopWithLauncher(): void {
  const launcher = Number(process.env[launcherVariable]);
  if (!launcher) return;
  const timer = setInterval(() => {
    if (process.ppid === launcher) return;
    clearInterval(timer);
    process.kill(process.pid, 'SIGTERM');
  }, 1000);
  timer.unref();
}

/** Shows a run while it lasts, and its result. */
export async function showTraining(
  training: AsyncIterable<TrainEvent> & PromiseLike<TrainResult>,
  json: true | undefined,
): Promise<void> {
  const show = json ? printJson : progress();
  for await (const event of training) show(event);
  const result = await training;
  if (json) return printJson(result);
  console.log(`Saved ${result.adapter} (${savedLine(result)})`);
  const { ranks } = result;
  const all =
    ranks && ` (with ${ranks.length} processes: ${ranks.map((each) => each.peakRssMb.toFixed(0)).join(', ')} MB)`;
  console.log(
    `${result.losses.length} steps in ${duration(result.seconds)}, ${result.tokensPerSecond.toFixed(0)} tokens/s, peak memory ${result.peakRssMb.toFixed(0)} MB${all ?? ''}`,
  );
}

/** Which step was saved, and how it did on the held-out rows. */
function savedLine({ savedStep, losses, evalLoss, evalMetrics, tasks }: TrainResult): string {
  const step = `after step ${savedStep} of ${Math.max(savedStep, losses.length)}`;
  if (tasks) {
    const results = Object.entries(tasks).filter(([, result]) => result.evalLoss !== null);
    return [
      step,
      ...results.map(([name, result]) => `${name}: ${heldOutLine(result.evalLoss!, result.evalMetrics)}`),
    ].join('; ');
  }
  return evalLoss === null ? step : `${step}: ${heldOutLine(evalLoss, evalMetrics)}`;
}

const heldOutLine = (loss: number, metrics: readonly Metric[]) =>
  `held-out loss ${loss.toFixed(4)}, ${measured(loss, metrics)}`;

/** The metrics of a measurement. */
const measured = (loss: number, metrics: readonly Metric[]): string =>
  metrics.length === 0
    ? `perplexity ${Math.exp(loss).toFixed(2)}`
    : metrics.map(({ name, value, count, of }) => `${name} ${value.toFixed(4)} of ${count} ${of}`).join(', ');

/** Classes with their counts, the most frequent first where there are many. */
export function classesLine(classes: readonly ClassCount[]): string {
  const shown = classes.length > 20 ? [...classes].sort((a, b) => b.count - a.count).slice(0, 20) : classes;
  const more = classes.length > shown.length ? ` and ${classes.length - shown.length} more` : '';
  return shown.map(({ label, count }) => `${label} ${count}`).join(', ') + more;
}

/** The parts of a model that train, layers that follow one another as a range. */
export function partsLine(parts: readonly (number | string)[]): string {
  const runs: (string | [first: number, last: number])[] = [];
  for (const part of parts) {
    const before = runs.at(-1);
    if (typeof part === 'string') runs.push(part);
    else if (Array.isArray(before) && before[1] === part - 1) before[1] = part;
    else runs.push([part, part]);
  }
  const names = runs.map((run) =>
    typeof run === 'string' ? run : run[0] === run[1] ? `layer ${run[0]}` : `layers ${run[0]}-${run[1]}`,
  );
  return names.join(', ') || 'no layer';
}

/** What a run takes in memory, with its largest parts. */
const memoryLine = ({ totalMb, apartMb, ...parts }: RunMemory): string => {
  const { weightsMb, gradientsMb, optimizerMb, activationsMb, engineMb, ...disk } = parts;
  const apart = apartMb > 0 ? `, less ${apartMb} of gradients and activations that are never there at once` : '';
  const onDisk = disk.weightsOnDiskMb + disk.optimizerOnDiskMb;
  return `memory: ${totalMb} MB at most (weights ${weightsMb}, gradients ${gradientsMb}, optimizer ${optimizerMb}, activations ${activationsMb}, engine ${engineMb}${apart}), ${mebibytes(freeMemory())} free${onDisk > 0 ? `; on the disk: weights ${disk.weightsOnDiskMb}, optimizer ${disk.optimizerOnDiskMb}` : ''}`;
};

/** Shows events on stderr: one line that is rewritten on a terminal, elsewhere a line every few seconds. */
function progress(): (event: TrainEvent) => void {
  const terminal = process.stderr.isTTY;
  let start = { steps: 0, at: 0, first: 0 };
  let shown = 0;
  let layers = '';
  const line = (text: string, keep = false) => {
    if (!terminal) console.error(text);
    else process.stderr.write(`\r\x1b[2K${text}${keep ? '\n' : ''}`);
  };
  return (event) => {
    const now = performance.now();
    switch (event.type) {
      case 'memory':
        line(memoryLine(event), true);
        return;
      case 'start':
        start = { steps: event.steps, at: now, first: event.step };
        line(
          `${event.rows} training rows, ${event.heldOut} held out; ${event.trainable.toLocaleString('en')} of ${event.parameters.toLocaleString('en')} parameters are trained (${((100 * event.trainable) / event.parameters).toFixed(2)} %); up to ${event.microTokens} tokens in memory at a time, ${event.threads} threads, ${event.precision} products${event.device === 'cpu' ? '' : `, on ${event.device} with ${event.kernels}`}`,
          true,
        );
        for (const [name, { classes }] of Object.entries(event.tasks ?? { '': event }))
          if (classes) line(`classes${name && ` of ${name}`}: ${classesLine(classes)}`, true);
        if (event.fixedBlocks) {
          const kept = event.keptBytes
            ? `kept for the next epochs, in up to ${mebibytes(event.keptBytes)}`
            : 'not kept';
          line(
            `the ${event.fixedBlocks} lowest blocks compute the same in every step: what they return is ${kept}`,
            true,
          );
        }
        if (event.step > 0) line(`Resumed after step ${event.step}`, true);
        return;
      case 'layers':
        layers = `  trains ${partsLine(event.trained)}`;
        return;
      case 'step': {
        if (!terminal && now - shown < 5000 && event.step < start.steps) return;
        shown = now;
        const done = event.step - start.first;
        const left = ((now - start.at) / 1000 / done) * (start.steps - event.step);
        line(
          `step ${event.step}/${start.steps}  ${event.task ? `${event.task} ` : ''}loss ${event.loss.toFixed(4)}  ${(event.tokens / event.seconds).toFixed(0)} tokens/s  ${Math.round(event.rssMb)} MB${layers}  ${duration(left)} left`,
        );
        return;
      }
      case 'eval':
        line(
          `step ${event.step}: ${event.task ? `${event.task}, ` : ''}held-out loss ${event.loss.toFixed(4)} (${measured(event.loss, event.metrics)})${event.best ? ', the best so far' : ''}`,
          true,
        );
        return;
      case 'warning':
        line(`note: ${event.message}`, true);
        return;
      case 'end':
        line(
          {
            done: `done after ${event.step} steps`,
            'early-stop': `early stopping at step ${event.step}: the held-out loss no longer falls`,
            'finished-before': `This run is finished, after ${event.step} steps. More train.steps or --more-epochs go on with it, --fresh starts over`,
          }[event.reason],
          true,
        );
    }
  };
}

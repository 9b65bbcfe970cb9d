import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { type Row, tokenizerFilesOf, tokenizerOf } from '../data/index.ts';
import { currentEngine } from '../engine/index.ts';
import { headFits, loadAdapter, saveAdapter, savedAdapters, saveModel } from '../export/index.ts';
import { lockDirectory, resolveModel } from '../io/index.ts';
import { type Adapter, type Attached, attachMethods, type Method, methods } from '../methods/index.ts';
import { loadModel } from '../models/index.ts';
import { bestPrecision, type Model, type Precision, tensorBytes, usePrecision } from '../nn/index.ts';
import { adamw, type Optimizer, scheduleFactor } from '../optim/index.ts';
import { batchesOf, type Metric, measure, type Task, taskOf } from '../tasks/index.ts';
import { microTokensFor } from './budget.ts';
import { lastCheckpoint, type RunState, restoreCheckpoint, saveCheckpoint } from './checkpoint.ts';
import { explained, requireFinite } from './diverged.ts';
import { EventLog, type TrainEvent } from './events.ts';
import { headFor, taskOptions } from './head.ts';
import { trainLoop } from './loop.ts';
import type { Recipe } from './recipe.ts';
import { type Plan, planRows, readExamples } from './rows.ts';
import { type MicroBatch, trainStep } from './step.ts';

/** What `graft train --json` prints last. */
export interface TrainResult {
  /** Mean loss of every step of the run: in nats a predicted token, or as the task has it. */
  readonly losses: number[];
  /** Of all steps that this process did. */
  readonly seconds: number;
  /** Tokens (predicted or not) a second over those steps, the first left out. */
  readonly tokens_per_s: number;
  readonly peak_rss_mb: number;
  /** Where the trained adapter (or, for `method: full`, the model) is. */
  readonly adapter: string;
  readonly eval_loss: number | null;
  /** Of the last measurement on held-out rows. */
  readonly eval_metrics: readonly Metric[];
  readonly resumed_from: number;
}

/**
 * Runs a recipe in this thread. A run directory that holds an unfinished run of the same recipe is gone on with; what
 * another run left there is moved aside.
 * @param stopNow asked after every step; when true the run ends with a checkpoint, as an 'interrupted' error
 * @throws GraftError for anything that is wrong with the recipe, the model, the data or the machine
 */
export async function runTraining(
  { recipe, fresh = false }: { recipe: Recipe; fresh?: boolean },
  listen: (event: TrainEvent) => void,
  stopNow: () => boolean = () => false,
): Promise<TrainResult> {
  const { native } = currentEngine();
  const threads = native.threads(recipe.train.threads);
  const precision = recipe.train.precision === 'auto' ? bestPrecision() : recipe.train.precision;
  using _precision = usePrecision(precision);
  const modelPath = await resolveModel(recipe.model);
  const { dir } = recipe.run;
  using _lock = lockDirectory(dir);
  const fingerprint = createHash('sha256')
    .update(JSON.stringify({ ...recipe, run: undefined }))
    .digest('hex')
    .slice(0, 16);

  const examples = await readExamples(recipe);
  const given = [...examples.train.flat(), ...(examples.eval ?? [])].map(({ example }) => example);
  using model = loadModel(modelPath, {
    quantize: recipe.quantize,
    seed: recipe.train.seed,
    ...headFor(recipe, modelPath, given),
  });
  const weightBytes = tensorBytes(model.root);
  using adapter = attach(model, modelPath, recipe);
  if (adapter.parameters.size === 0) {
    throw new GraftError('usage', 'there is nothing to train: all of it is frozen or averaged', { place: 'method' });
  }
  using optimizer = optimizerFor(adapter, recipe);
  const plan = await planRows(recipe, model, modelPath, taskOf(model.task), examples);
  const task = taskOf(model.task, taskOptions(recipe, model.task, plan.learned));
  // Only now: a recipe that turns out wrong leaves the directory as it is, and may begin from an adapter in it.
  const found = claim(dir, fingerprint, fresh);
  const log = new EventLog(dir, listen);

  let state: RunState = { step: 0, best: null, stale: 0, recipe: fingerprint };
  let earlier: TrainEvent[] = [];
  if (found) {
    state = found.state;
    restoreCheckpoint(found.path, adapter.parameters, optimizer);
    earlier = log.rewind(state.step);
  }
  native.trim();
  return run({
    recipe,
    model,
    task,
    modelPath,
    weightBytes,
    adapter,
    optimizer,
    plan,
    log,
    threads,
    precision,
    state,
    earlier,
    stopNow,
  });
}

interface Run {
  readonly recipe: Recipe;
  readonly model: Model;
  readonly task: Task;
  readonly modelPath: string;
  readonly weightBytes: number;
  readonly adapter: Adapter;
  readonly optimizer: Optimizer;
  readonly plan: Plan;
  readonly log: EventLog;
  readonly threads: number;
  readonly precision: Precision;
  readonly state: RunState;
  readonly earlier: readonly TrainEvent[];
  readonly stopNow: () => boolean;
}

function run({
  recipe,
  model,
  task,
  modelPath,
  weightBytes,
  adapter,
  optimizer,
  plan,
  log,
  threads,
  precision,
  state: from,
  earlier,
  stopNow,
}: Run): TrainResult {
  const { train, eval: evaluation } = recipe;
  const { dir } = recipe.run;
  // Gone on with, a run keeps the cut that it began with, whatever memory is free now.
  const budget =
    train.micro_tokens ?? earlier.find((e) => e.type === 'start')?.microTokens ?? microTokensFor(model, precision);
  const cut = (rows: readonly Row[], together = rows.length): MicroBatch[] =>
    batchesOf(task, rows, budget, together, model.ports.promptLength);
  const heldOut = cut(plan.heldOut, train.batch_size);
  const evaluateEvery = evaluation.every ?? plan.stepsPerEpoch;
  const best = join(dir, 'best');
  const checkpoints = join(dir, 'checkpoints');
  let state = from;
  const measured = earlier.findLast((e) => e.type === 'eval');
  let evalLoss = measured?.loss ?? null;
  let metrics: readonly Metric[] = measured?.metrics ?? [];
  const enough = () => evaluation.patience !== undefined && state.stale >= evaluation.patience;
  const stopped = enough();
  let saved = performance.now();

  log.emit({
    type: 'start',
    step: state.step,
    steps: plan.steps,
    rows: plan.rows,
    heldOut: plan.heldOut.length,
    trainable: count(adapter.parameters.values()),
    parameters: model.parameters,
    weightBytes,
    microTokens: budget,
    threads,
    precision,
  });
  const advice = [...(adapter.advise?.(train.lr) ?? [])];
  if (recipe.adapter && !headFits(model, recipe.adapter)) {
    advice.push(`the head of ${recipe.adapter} is for another task: the model keeps its own`);
  }
  for (const message of [...adapter.warnings, ...advice, ...plan.warnings]) log.emit({ type: 'warning', message });

  const done: { loss: number; tokens: number; seconds: number }[] = [];
  let last: { rows: readonly Row[]; lr: number } = { rows: [], lr: train.lr };
  const withCause = <T>(rows: readonly Row[], lr: number, act: () => T): T => {
    try {
      return act();
    } catch (error) {
      throw explained(error, {
        model,
        parameters: adapter.parameters,
        rows,
        lr,
        step: state.step,
        steps: done.length,
        checkpoints,
      });
    }
  };
  const reason = trainLoop({
    from: state.step,
    steps: stopped ? state.step : plan.steps,

    step(step) {
      const start = performance.now();
      const rows = plan.rowsOf(step);
      const lr =
        train.lr *
        scheduleFactor({ type: train.schedule, ...pick(train, ['warmup_steps', 'warmup_ratio']) }, step, plan.steps);
      adapter.beforeStep?.(step, plan.steps);
      const result = withCause(rows, lr, () =>
        trainStep({
          model,
          task,
          parameters: adapter.parameters,
          optimizer,
          adapter,
          batches: cut(rows),
          lr,
          maxGradNorm: train.max_grad_norm,
          seed: train.seed,
          step,
        }),
      );
      last = { rows, lr };
      const seconds = (performance.now() - start) / 1e3;
      state = { ...state, step: step + 1 };
      done.push({ loss: result.loss, tokens: result.tokens, seconds });
      const epoch = (step + 1) / plan.stepsPerEpoch;
      const rssMb = process.memoryUsage.rss() / 2 ** 20;
      const { handles } = currentEngine().native.memory();
      log.emit({ type: 'step', step: step + 1, ...result, lr, seconds, epoch, rssMb, handles });
    },

    ...(heldOut.length > 0 && {
      evaluate(step: number) {
        const start = performance.now();
        const result = withCause(last.rows, last.lr, () => measure(model, task, heldOut, plan.heldOut));
        const { loss, units: tokens } = result;
        evalLoss = loss;
        metrics = result.metrics;
        const better = state.best === null || loss < state.best;
        state = { ...state, best: better ? loss : state.best, stale: better ? 0 : state.stale + 1 };
        if (better && evaluation.keep === 'best') save(best);
        const seconds = (performance.now() - start) / 1e3;
        log.emit({ type: 'eval', step, loss, tokens, metrics, seconds, best: better });
        return enough() ? 'stop' : 'go on';
      },
    }),
    stopNow,
    evaluateNow: (step) => step % evaluateEvery === 0,

    checkpoint(step) {
      const start = performance.now();
      withCause(last.rows, last.lr, () => requireFinite(adapter.parameters, step));
      const path = saveCheckpoint(checkpoints, state, adapter.parameters, optimizer, recipe.run.keep_checkpoints);
      saved = performance.now();
      log.emit({ type: 'checkpoint', step, path, seconds: (saved - start) / 1e3 });
    },
    checkpointNow: (step) =>
      recipe.run.checkpoint_every ? step % recipe.run.checkpoint_every === 0 : performance.now() - saved > 60_000,
  });

  if (reason === 'stopped') {
    const checkpoint = lastCheckpoint(checkpoints)!.path;
    throw new GraftError('interrupted', `stopped after step ${state.step} of ${plan.steps}, with a checkpoint`, {
      place: checkpoint,
      mend: 'Run the same command again to go on from there',
      data: { step: state.step, checkpoint },
    });
  }

  function save(to: string): void {
    if (adapter.method === 'full') saveModel(model, to, modelPath, 'float32', tokenizerFilesOf(modelPath));
    else saveAdapter(model, adapter, to, { base: recipe.model });
  }

  const handed = join(dir, adapter.method === 'full' ? 'model' : 'adapter');
  const chosen = state.best !== null && evaluation.keep === 'best';
  if (chosen && existsSync(best)) {
    rmSync(handed, { recursive: true, force: true });
    renameSync(best, handed);
  } else if (!(chosen && existsSync(handed))) {
    save(handed); // a run killed just before its end may have handed over the best already
  }
  log.emit({ type: 'end', step: state.step, reason: stopped ? 'early-stop' : reason, adapter: handed });
  const timed = done.length > 1 ? done.slice(1) : done;
  const sum = (of: (d: (typeof done)[number]) => number, list = done) => list.reduce((a, d) => a + of(d), 0);
  return {
    losses: [...earlier.flatMap((e) => (e.type === 'step' ? [e.loss] : [])), ...done.map((d) => d.loss)],
    seconds: sum((d) => d.seconds),
    tokens_per_s: sum((d) => d.tokens, timed) / sum((d) => d.seconds, timed) || 0,
    peak_rss_mb: process.resourceUsage().maxRSS / 1024,
    adapter: handed,
    eval_loss: evalLoss,
    eval_metrics: metrics,
    resumed_from: from.step,
  };
}

/** Makes the run directory ready: the checkpoint to go on from, or undefined with the directory free of older runs. */
function claim(dir: string, fingerprint: string, fresh: boolean): { path: string; state: RunState } | undefined {
  const log = new EventLog(dir, () => {});
  const events = log.read();
  const found = lastCheckpoint(join(dir, 'checkpoints'));
  const finished = events.at(-1)?.type === 'end';
  if (found && found.state.recipe === fingerprint && !finished && !fresh) return found;
  const parts = ['adapter', 'model', 'best', 'checkpoints', 'events.jsonl'].filter((name) =>
    existsSync(join(dir, name)),
  );
  // A run that never came to a checkpoint has nothing worth keeping but its events.
  if (parts.length > 0) {
    let n = 1;
    while (existsSync(join(dir, `previous-${n}`))) n++;
    mkdirSync(join(dir, `previous-${n}`));
    for (const name of parts) renameSync(join(dir, name), join(dir, `previous-${n}`, name));
  }
  return undefined;
}

function attach(model: Model, modelPath: string, recipe: Recipe): Attached {
  const choices = [recipe.method].flat();
  if (!recipe.adapter) {
    const encode = (text: string) => [...tokenizerOf(modelPath).encode(text)];
    return attachMethods(model, choices, recipe.train.seed, { ...savedAdapters(model), encode });
  }
  // An adapter of another task goes on under this one's head.
  const training = choices.map(({ type, ...fields }) => {
    const own = (methods[type] as Method<unknown>).trainingOnly ?? [];
    return Object.fromEntries(Object.entries(fields).filter(([field]) => own.includes(field)));
  });
  const adapter = loadAdapter(model, recipe.adapter, headFits(model, recipe.adapter) ? 'file' : 'own', training);
  const wanted = choices.map(({ type }) => type).join(' + ');
  if (adapter.method === wanted) return adapter;
  adapter.detach();
  throw new GraftError(
    'mismatch',
    `the recipe's method is ${wanted}, and the adapter to begin from is ${adapter.method}`,
    { place: recipe.adapter },
  );
}

/** AdamW at the rates that the method asks for; what the method keeps from step to step is kept with its moments. */
function optimizerFor(adapter: Adapter, { train }: Recipe): Optimizer {
  const rate = (key: string) => (adapter.rate?.(key, train.lr) ?? train.lr) / train.lr;
  const optimizer = adamw(adapter.parameters, pick(train, ['beta1', 'beta2', 'eps', 'weight_decay']), rate);
  return { ...optimizer, state: new Map([...optimizer.state, ...(adapter.state ?? [])]) };
}

function count(tensors: Iterable<{ numel: number }>): number {
  let sum = 0;
  for (const t of tensors) sum += t.numel;
  return sum;
}

function pick<T extends object, K extends keyof T>(from: T, keys: readonly K[]): Pick<T, K> {
  return Object.fromEntries(keys.filter((k) => from[k] !== undefined).map((k) => [k, from[k]])) as Pick<T, K>;
}

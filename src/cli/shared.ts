import { constants } from 'node:os';
import { Command, InvalidArgumentError, Option } from 'commander';
import { adapterIn, baseOfAdapter } from '../adapters/index.ts';
import { GraftError, toWire } from '../base/index.ts';
import { exportFormats } from '../models/index.ts';
import type { TaskName } from '../nn/index.ts';
import { activationModes, quantizeModes } from '../quant/index.ts';
import {
  type LoadedModel,
  type ModelSettings,
  type Progress,
  type QuantizeResult,
  type Running,
  Session,
} from '../session/index.ts';

/** Help of `--device`. */
export const deviceHelp =
  'where to compute: auto (the first GPU that can be used, else the processor), cpu, cuda, or of several GPUs cuda:1; default: auto';

/** How a command that loads a model holds its weights. */
export const quantizeOption = () =>
  new Option(
    '--quantize <how>',
    'weights in memory: as the file stores them (keep), unpacked to float32 (none), quantised while loading (int8, nf4)',
  )
    .choices(quantizeModes)
    .default('keep');

/** How a command that loads a model takes the inputs of its layers. */
export const activationOption = () =>
  new Option(
    '--activation <how>',
    'inputs of layers whose weights are in blocks of GGUF: as they are (exact), or rounded to 8 bits as llama.cpp does (q8)',
  )
    .choices(activationModes)
    .default('exact');

/** A command that works on a loaded model, with the options that all of these have. */
export const onModel = (name: string, description: string) =>
  new Command(name)
    .description(description)
    .option(
      '--model <path>',
      'a Hugging Face directory, a .gguf file, or a hub id; default: the base that the adapter names',
    )
    .option('--adapter <dir>', 'directory of an adapter to use, of the run that made it, or a .gguf file of one')
    .addOption(quantizeOption())
    .addOption(activationOption())
    .option(
      '--task-number <n>',
      'for prompts trained on several tasks: number of the task of rows that have none',
      countOrNone,
    )
    .option('--threads <n>', 'processor threads; default: all cores', count)
    .option('--device <name>', deviceHelp)
    .option('--json', 'print the result as JSON');

const wholeNumber =
  (minimum: number) =>
  (text: string): number => {
    const value = Number(text);
    if (text.trim() !== '' && Number.isInteger(value) && value >= minimum) return value;
    throw new InvalidArgumentError(
      minimum > 0 ? 'It must be an integer above 0.' : 'It must be an integer, 0 or more.',
    );
  };

/** A whole number above 0, for an option; the other may be 0. */
export const count = wholeNumber(1);
export const countOrNone = wholeNumber(0);

/** A number above 0, for an option. */
export function positive(text: string): number {
  const value = Number(text);
  if (text.trim() !== '' && Number.isFinite(value) && value > 0) return value;
  throw new InvalidArgumentError('It must be a number above 0.');
}

/** A number of 0 or more, for an option. */
export const notNegative = (text: string): number => (text.trim() !== '' && Number(text) === 0 ? 0 : positive(text));

const powers: Readonly<Record<string, number>> = { '': 0, k: 1, M: 2, G: 3, T: 4, P: 5 };

/** A number with a prefix such as G (10⁹) or Gi (2³⁰), and one of the units, which may be left out: the number by which a unit counts. */
export const quantity =
  (units: Readonly<Record<string, number>>, example: string) =>
  (text: string): number => {
    const [, number, prefix, binary, unit] = /^([\d.]+) ?([kMGTP]?)(i?)([A-Za-z/]*)$/.exec(text) ?? [];
    const factor = { '': 1, ...units }[unit ?? '?'];
    const value = Number(number) * (binary ? 1024 : 1000) ** powers[prefix ?? '']! * (factor ?? Number.NaN);
    if (value > 0 && Number.isFinite(value)) return value;
    throw new InvalidArgumentError(`It must be an amount such as ${example}.`);
  };

/** Bytes, for an option. */
export const bytes = quantity({ B: 1 }, '80GB or 64GiB');
/** The values of an option that may be repeated. */
export const collect = (value: string, all: string[] = []) => [...all, value];

/** Examples under a command's help. */
export const examples = (...lines: string[]) => `\nExamples:\n${lines.map((line) => `  $ ${line}`).join('\n')}\n`;

/** Options of `onModel`. */
export interface OnModelOptions extends Pick<ModelSettings, 'quantize' | 'activation' | 'threads' | 'device'> {
  readonly model?: string;
  readonly adapter?: string;
  readonly task?: TaskName;
  readonly json?: true;
}

/** The model of a command, or the base of its adapter. @throws GraftError 'usage' where neither says what it is */
export function modelOf(model: string | undefined, adapter: string | undefined): string {
  if (model !== undefined) return model;
  if (adapter !== undefined) return baseOfAdapter(adapterIn(adapter));
  throw new GraftError('usage', 'there is no model', {
    place: '--model',
    hint: 'Name a model, or an adapter whose base it is as --adapter',
  });
}

/** Loads the model of a command with its adapter, for `act` alone, which also gets the options that are not about loading. */
export async function withModel<O extends OnModelOptions, T>(
  options: O,
  act: (model: LoadedModel, settings: Omit<O, 'model' | 'quantize' | 'activation' | 'device' | 'json'>) => Promise<T>,
): Promise<T> {
  const { model: named, quantize, activation, device, json: _, ...settings } = options;
  const { adapter, task, threads } = settings;
  const id = modelOf(named, adapter);
  await using session = new Session();
  await using model = await session.load(id, {
    quantize,
    activation,
    threads,
    task,
    device,
    ...(adapter && { adapters: [adapter] }),
  });
  if (model.info.device !== 'cpu') console.error(`on ${model.info.device}`);
  return await act(model, settings);
}

/** The options of how a model is written in a format, for commands that take `--to`. */
export const writtenOptions = (command: Command) =>
  command
    .option('--group-size <n>', 'int2 to int8: numbers of a row that share a scale; default: all of the row', count)
    .addOption(
      new Option(
        '--embedding <format>',
        'of the token embeddings and the output layer; default: q8_0 in a .gguf file, else none',
      ).choices(['none', ...exportFormats]),
    );

/** Shows how many tensors are written, on a terminal. */
export async function showTensors<T>(running: Running<Progress, T>): Promise<T> {
  if (process.stderr.isTTY) {
    for await (const { done, total } of running) process.stderr.write(`\r\x1b[2K${done} of ${total} tensors written`);
    process.stderr.write('\r\x1b[2K');
  }
  return running;
}

/** Prints what was written: sizes, drift, and a line for everything that is not as asked. */
export function printWritten(result: QuantizeResult, from: string, held = 'its'): void {
  const { out, bytes, sourceBytes, maxDrift, meanDrift, tokens, changed, predictions, notes, notCopied } = result;
  console.log(
    `Wrote ${out}, ${mebibytes(bytes)} (from ${mebibytes(sourceBytes)}); ${held} logits differ from those of ${from} by at most ${maxDrift.toExponential(1)} (mean ${meanDrift.toExponential(1)}) over ${tokens} tokens, and ${changed} of ${predictions} predictions changed`,
  );
  for (const note of notes) console.log(`Note: ${note}`);
  if (notCopied.length > 0) console.log(`Not copied from the base: ${notCopied.join(', ')}`);
}

/** Prints a result as one line of JSON. */
export const printJson = (result: object): void => console.log(JSON.stringify(toWire(result)));

export const printNotes = (notes: readonly string[]): void => {
  for (const note of notes) console.error(`note: ${note}`);
};

export const mebibytes = (bytes: number) => `${Math.round(bytes / 2 ** 20)} MB`;

export function duration(seconds: number): string {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60
    ? `${minutes} min ${Math.round(seconds % 60)} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Signals within this many milliseconds count once: a shell and a parent process may send the same one. */
const SAME_PRESS = 1000;

/** Why a command was stopped: the reason of an abort, which the error that follows has as its cause. */
export class StopSignal extends Error {
  override readonly name = 'StopSignal';
  /** As shells count: 128 and the number of the signal. */
  readonly exitCode: number;

  constructor(signal: NodeJS.Signals) {
    super(`${signal} was received`);
    this.exitCode = 128 + constants.signals[signal];
  }
}

/**
 * A signal that Ctrl-C, SIGTERM, a closed terminal (SIGHUP) or a closed pipe aborts; sent again, the process ends at once.
 * @param message is printed on stderr
 */
export function abortOnSignals(message: string): Disposable & { readonly signal: AbortSignal } {
  const controller = new AbortController();
  let firstAt: number | undefined;
  const stop = (name: NodeJS.Signals) => {
    const now = performance.now();
    const reason = new StopSignal(name);
    if (firstAt !== undefined && now - firstAt > SAME_PRESS) process.exit(reason.exitCode);
    if (firstAt === undefined) console.error(message);
    firstAt ??= now;
    controller.abort(reason);
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const signal of signals) process.on(signal, stop);
  return {
    signal: controller.signal,
    [Symbol.dispose]() {
      for (const signal of signals) process.off(signal, stop);
    },
  };
}

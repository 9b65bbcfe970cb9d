import { appendFileSync, closeSync, existsSync, fsyncSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fromWire, GraftError, toWire } from '../base/index.ts';
import { writeText } from '../io/index.ts';
import type { ModelPart } from '../nn/index.ts';
import type { ClassCount, Metric } from '../tasks/index.ts';
import type { RunMemory } from './memory-plan.ts';

/** What happens in a run: each is a line of `events.jsonl`, in snake_case. Seconds are of the event alone. */
export type TrainEvent =
  | ({
      /** What the run will take, before anything is loaded; the log has it in the event `start`. */
      type: 'memory';
    } & RunMemory)
  | {
      type: 'start';
      /** The step that the run is resumed after; 0 for a new run. */
      step: number;
      /** Optimizer steps of the whole run. */
      steps: number;
      /** Rows to learn from. */
      rows: number;
      /** Rows held out. */
      heldOut: number;
      /** Parameters that are trained. */
      trainable: number;
      /** Parameters of the base. */
      parameters: number;
      /** Bytes of the base's weights as they are held in memory. */
      weightBytes: number;
      /** Tokens of a micro-batch at most. */
      microTokens: number;
      /** What the run takes in memory, as computed before the model was loaded. */
      memory: RunMemory;
      /** Processor threads in use. */
      threads: number;
      /** Precision of matrix products with frozen weights. */
      precision: string;
      /** Where it computes: cpu, or a GPU such as cuda:0. */
      device: string;
      /** Whether the fused operators run there, or several of LibTorch's own in their place. */
      kernels: string;
      /** How many of the lowest blocks compute the same in every step, a row at a time; absent: none that it is worth for. */
      fixedBlocks?: number;
      /** Bytes that what they compute may take on disk, where it is kept for the next epochs. */
      keptBytes?: number;
      /** Of a task with classes: each with the number of rows to learn from that have it. */
      classes?: readonly ClassCount[];
      /** Of several tasks: rows to learn from, rows held out, the share of the steps, and the classes. */
      tasks?: Readonly<
        Record<string, { rows: number; heldOut: number; share: number; classes?: readonly ClassCount[] }>
      >;
    }
  | {
      type: 'layers';
      /** Number of the first step, from 1, in which these parts train. */
      step: number;
      /** The parts of the model that train: layers by their number, from 0; what comes before them, and what after. */
      trained: readonly ModelPart[];
      /** How many numbers train, those in no layer included. */
      parameters: number;
    }
  | {
      type: 'step';
      /** Number of the step, from 1. */
      step: number;
      /** Of several tasks, the one of this step. */
      task?: string;
      /** Mean loss over the units of the step, with the method's own term. */
      loss: number;
      /** The method's own term, which is part of the loss. */
      penalty?: number;
      /** The learning rate of the step. */
      lr: number;
      /** 2-norm of all gradients before clipping. */
      gradNorm: number;
      /** Tokens of the step's rows. */
      tokens: number;
      /** Units of the loss: predicted tokens, rows, or their weights. */
      predicted: number;
      /** Time of the step. */
      seconds: number;
      /** Passes over the training rows after the step, a fraction. */
      epoch: number;
      /** Resident memory of the process after the step, in MiB. */
      rssMb: number;
      /** Live tensor handles after the step. */
      handles: number;
    }
  | {
      type: 'eval';
      /** The step after which was measured. */
      step: number;
      /** Of several tasks, the one whose held-out rows were measured. */
      task?: string;
      /** Mean loss over the units of the held-out rows. */
      loss: number;
      /** Units of the loss: predicted tokens, rows, or their weights. */
      tokens: number;
      /** Each metric with its 95 % confidence interval. */
      metrics: readonly Metric[];
      /** Time of the measurement. */
      seconds: number;
      /** Whether the loss is the lowest so far; of several tasks, the mean of their losses by their shares of the steps. */
      best: boolean;
    }
  | {
      type: 'checkpoint';
      /** The step after which it was saved. */
      step: number;
      /** Directory of the checkpoint. */
      path: string;
      /** Time of saving. */
      seconds: number;
    }
  | {
      type: 'warning';
      /** What is unusual; the run continues. */
      message: string;
    }
  | ({
      type: 'end';
      /** The last step. */
      step: number;
      /** Whether all steps were done, or `eval.patience` ended the run; finished-before: an earlier process ended it. */
      reason: 'done' | 'early-stop' | 'finished-before';
    } & SavedResult);

/** The result of one task: where its adapter is, and how it did on held-out rows. */
export interface TaskResult {
  /** Directory of its adapter. */
  readonly adapter: string;
  /** Loss on the held-out rows of what was saved; null where it was not measured. */
  readonly evalLoss: number | null;
  /** Metrics on the held-out rows of what was saved. */
  readonly evalMetrics: readonly Metric[];
}

/** What a run saved: the parameters after which step, and how they did on held-out rows. */
export interface SavedResult extends TaskResult {
  /** Path of the trained adapter (of a method that writes a whole model: of the model; of several tasks: of the folder of their adapters). */
  readonly adapter: string;
  /** The step after which the parameters were as they were saved. */
  readonly savedStep: number;
  /** Loss on the held-out rows of what was saved; of several tasks the mean of their losses by their shares of the steps. */
  readonly evalLoss: number | null;
  /** Metrics on the held-out rows of what was saved; of several tasks none: they are in `tasks`. */
  readonly evalMetrics: readonly Metric[];
  /** Of several tasks, by name. */
  readonly tasks?: Readonly<Record<string, TaskResult>>;
}

/** Writes events: to the file first, then to the listener. */
export class EventLog {
  readonly #file: string;
  readonly #listen: (event: TrainEvent) => void;

  constructor(dir: string, listen: (event: TrainEvent) => void) {
    this.#file = join(dir, 'events.jsonl');
    this.#listen = listen;
  }

  emit(event: TrainEvent): void {
    this.record(event);
    this.#listen(event);
  }

  /** Writes an event that the listener was told before the run directory was known to be right. */
  record(event: TrainEvent): void {
    appendFileSync(this.#file, `${JSON.stringify(toWire(event))}\n`);
  }

  /** Returns once all events are on the disk, where a checkpoint that follows them may not come before them. */
  flush(): void {
    const fd = openSync(this.#file, 'r');
    fsyncSync(fd);
    closeSync(fd);
  }

  /** Removes the events after step `step`, which a killed run wrote after its last checkpoint, and its end. Returns the others. */
  rewind(step: number): TrainEvent[] {
    const kept = readEvents(this.#file).filter(
      (event) => event.type !== 'end' && (!('step' in event) || event.step <= step),
    );
    writeText(this.#file, kept.map((event) => `${JSON.stringify(toWire(event))}\n`).join(''));
    return kept;
  }
}

/**
 * Reads a log of events. Its last line may be half-written, by a run that was killed.
 * @throws GraftError 'input' for any other line that is not an event
 */
export function readEvents(file: string): TrainEvent[] {
  if (!existsSync(file)) return [];
  const lines = readFileSync(file, 'utf8').split('\n');
  return lines.flatMap((line, i) => {
    try {
      return line ? [fromWire(JSON.parse(line)) as TrainEvent] : [];
    } catch (cause) {
      if (i === lines.length - 1) return [];
      throw new GraftError('input', 'the line is not an event: the log of the run is damaged', {
        place: `${file}:${i + 1}`,
        hint: 'Start over (--fresh, or fresh: true from TypeScript); what the run directory holds is kept in previous-N/',
        data: { startsOver: '--fresh' },
        cause,
      });
    }
  });
}

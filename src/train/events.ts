import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fromWire, toWire } from '../base/index.ts';
import type { Metric } from '../tasks/index.ts';

/** What happens in a run: each is a line of `events.jsonl`, in snake_case. Seconds are of the event alone. */
export type TrainEvent =
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
      /** Processor threads in use. */
      threads: number;
      /** Precision of matrix products with frozen weights. */
      precision: string;
      /** Of several tasks: rows to learn from, rows held out, and the share of the steps. */
      tasks?: Readonly<Record<string, { rows: number; heldOut: number; share: number }>>;
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
  | {
      type: 'end';
      /** The last step. */
      step: number;
      /** Whether all steps were done, or `eval.patience` ended the run. */
      reason: 'done' | 'early-stop';
      /** Path of the trained adapter, or of the model for a method that writes one. */
      adapter: string;
    };

/** Writes events: to the file first, then to the listener. */
export class EventLog {
  readonly #file: string;
  readonly #listen: (event: TrainEvent) => void;

  constructor(dir: string, listen: (event: TrainEvent) => void) {
    this.#file = join(dir, 'events.jsonl');
    this.#listen = listen;
  }

  emit(event: TrainEvent): void {
    appendFileSync(this.#file, `${JSON.stringify(toWire(event))}\n`);
    this.#listen(event);
  }

  /** Removes the events after step `step`, which a killed run wrote after its last checkpoint. Returns the others. */
  rewind(step: number): TrainEvent[] {
    const kept = this.read().filter((event) => !('step' in event) || event.step <= step);
    writeFileSync(this.#file, kept.map((event) => `${JSON.stringify(toWire(event))}\n`).join(''));
    return kept;
  }

  read(): TrainEvent[] {
    if (!existsSync(this.#file)) return [];
    return readFileSync(this.#file, 'utf8')
      .split('\n')
      .flatMap((line) => {
        try {
          return line ? [fromWire(JSON.parse(line)) as TrainEvent] : [];
        } catch {
          return []; // the line that was being written when the run was killed
        }
      });
  }
}

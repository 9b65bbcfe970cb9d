import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fromWire, toWire } from '../base/index.ts';
import type { Metric } from '../tasks/index.ts';

/** What happens in a run: each is a line of `events.jsonl`, in snake_case. Seconds are of the event alone. */
export type TrainEvent =
  | {
      type: 'start';
      step: number;
      steps: number;
      rows: number;
      heldOut: number;
      trainable: number;
      parameters: number;
      /** Bytes of the base's weights as they are held in memory. */
      weightBytes: number;
      microTokens: number;
      threads: number;
      precision: string;
      /** Of several tasks: rows to learn from, rows held out, and the share of the steps. */
      tasks?: Readonly<Record<string, { rows: number; heldOut: number; share: number }>>;
    }
  | {
      type: 'step';
      step: number;
      /** Of several tasks, the one of this step. */
      task?: string;
      loss: number;
      /** The method's own term, which is part of the loss. */
      penalty?: number;
      lr: number;
      gradNorm: number;
      tokens: number;
      predicted: number;
      seconds: number;
      epoch: number;
      /** Resident memory of the process and live tensor handles, after the step. */
      rssMb: number;
      handles: number;
    }
  | {
      type: 'eval';
      step: number;
      /** Of several tasks, the one whose held-out rows were measured. */
      task?: string;
      loss: number;
      /** Units of the loss: predicted tokens, rows, or their weights. */
      tokens: number;
      metrics: readonly Metric[];
      seconds: number;
      /** Whether the loss is the lowest so far; of several tasks, the mean of their losses by their shares of the steps. */
      best: boolean;
    }
  | { type: 'checkpoint'; step: number; path: string; seconds: number }
  | { type: 'warning'; message: string }
  | { type: 'end'; step: number; reason: 'done' | 'early-stop'; adapter: string };

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

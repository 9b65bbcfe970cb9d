import { GraftError } from '../base/index.ts';
import { batchesOf, type EvalResult, measure, type OnBatch } from '../tasks/index.ts';
import type { TrainEvent } from './events.ts';
import type { FixedBlocks } from './fixed-blocks.ts';
import type { Sharding } from './sharding.ts';
import type { MicroBatch } from './step.ts';
import type { TaskRun } from './task-runs.ts';

type Measurement = Pick<EvalResult, 'loss' | 'metrics'>;
type EvalEvent = Extract<TrainEvent, { type: 'eval' }>;

/** The held-out rows of every task, and what the measurements of a run found. */
export class HeldOut {
  readonly #batches = new Map<TaskRun, MicroBatch[]>();
  readonly #sharding: Pick<Sharding, 'group' | 'measuring'>;
  /** By step. */
  readonly #measured = new Map<number, Map<TaskRun, Measurement>>();
  readonly #fixedBlocks: FixedBlocks | undefined;

  /**
   * @param microTokens tokens of a micro-batch at most
   * @param batchSize rows of a micro-batch of tasks that compare rows
   * @param earlier events of the run so far, where it is resumed
   * @param sharding the processes that measure together
   * @param fixedBlocks the run's, where it has some
   */
  constructor(
    taskRuns: readonly TaskRun[],
    microTokens: number,
    batchSize: number,
    earlier: readonly TrainEvent[],
    sharding: Pick<Sharding, 'group' | 'measuring'>,
    fixedBlocks?: FixedBlocks,
  ) {
    this.#sharding = sharding;
    this.#fixedBlocks = fixedBlocks;
    for (const taskRun of taskRuns) {
      const { task, model, plan } = taskRun;
      if (plan.heldOut.length === 0) continue;
      this.#batches.set(
        taskRun,
        batchesOf(task, plan.heldOut, microTokens, batchSize, model.ports.promptLength, sharding.group.size),
      );
    }
    for (const event of earlier) {
      const taskRun = event.type === 'eval' && taskRuns.find(({ name }) => name === event.task);
      if (taskRun) this.#record(event.step, taskRun, event);
    }
  }

  get isEmpty(): boolean {
    return this.#batches.size === 0;
  }

  /**
   * Measures every task's held-out rows; several processes measure all, and stop after it. Returns undefined where a stop was requested before all were measured.
   * @throws GraftError 'numeric' where a loss is not finite
   */
  measure(step: number, stopRequested: () => boolean): Omit<EvalEvent, 'best'>[] | undefined {
    const stop = new GraftError('interrupted', 'the measurement was stopped');
    const onBatch = (done: number, total: number) => {
      if (done < total && this.#sharding.group.size === 1 && stopRequested()) throw stop;
    };
    try {
      return this.#measureAll(step, onBatch);
    } catch (error) {
      if (error === stop) return undefined;
      throw error;
    }
  }

  #measureAll(step: number, onBatch: OnBatch): Omit<EvalEvent, 'best'>[] {
    return [...this.#batches].map(([taskRun, batches]) => {
      const start = performance.now();
      const { name, model, task, plan } = taskRun;
      const fixed = this.#fixedBlocks;
      const hiddenOf = fixed && ((batch: MicroBatch) => fixed.hidden(model, batch));
      const { loss, metrics, units } = measure(model, task, batches, plan.heldOut, {
        onBatch,
        hiddenOf,
        group: this.#sharding.group,
        during: (run) => this.#sharding.measuring(run),
      });
      this.#record(step, taskRun, { loss, metrics });
      const seconds = (performance.now() - start) / 1e3;
      return { type: 'eval', step, ...(name !== undefined && { task: name }), loss, tokens: units, metrics, seconds };
    });
  }

  #record(step: number, taskRun: TaskRun, { loss, metrics }: Measurement): void {
    const ofStep = this.#measured.get(step) ?? new Map<TaskRun, Measurement>();
    this.#measured.set(step, ofStep.set(taskRun, { loss, metrics }));
  }

  /** What was measured of a task after `step`; undefined: nothing. */
  of(taskRun: TaskRun, step: number): Measurement | undefined {
    return this.#measured.get(step)?.get(taskRun);
  }

  /** The mean of the tasks' losses after `step` by their shares of the steps, which is what training lowers; null: not measured. */
  loss(step: number): number | null {
    const measured = [...(this.#measured.get(step) ?? [])];
    if (measured.length <= 1) return measured[0]?.[1].loss ?? null;
    const shares = measured.reduce((sum, [{ share }]) => sum + share, 0);
    return measured.reduce((sum, [{ share }, { loss }]) => sum + share * loss, 0) / shares;
  }
}

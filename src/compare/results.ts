import { readFileSync } from 'node:fs';
import { fromWire, toWire } from '../base/index.ts';
import { writeText } from '../io/index.ts';
import type { Metric } from '../tasks/index.ts';

/** The result of one method. */
export interface Outcome {
  /** The name of the method in the comparison. */
  readonly name: string;
  /** Types of its methods, joined by ' + '. */
  readonly method: string;
  /** The peak learning rate. */
  readonly lr: number;
  /** The metric that the methods are compared by, on the held-out rows. */
  readonly metric: Metric;
  /**
   * One character for each thing that the metric counts, in the order of the rows: '1' where the method is right, '0' where it is
   * wrong. Absent in results of older versions, and for metrics that are not a share of rows (F1, errors).
   */
  readonly hits?: string;
  /** Digest of the rows that the method was measured on: hits of other rows cannot be paired. */
  readonly rows?: string;
  /** Parameters that are trained. */
  readonly trainable: number;
  /** All parameters of the model, with those that the method adds. */
  readonly parameters: number;
  /** Training loss of each step. */
  readonly losses: readonly number[];
  /** Training tokens per second, without virtual tokens. */
  readonly tokensPerSecond: number;
  /** Peak resident memory of the training process, in MiB. */
  readonly peakMb: number;
  /** Bytes of the files that have to be stored for the task. */
  readonly size: number;
  /** Seconds of training, without loading. */
  readonly seconds: number;
  /** Where speed and time were measured: processor, threads, precision. A comparison can be resumed on another machine. */
  readonly machine: string;
}

/** A method that failed, and why. */
export interface Failure {
  /** The name of the method in the comparison. */
  readonly name: string;
  /** The message of the error. */
  readonly reason: string;
}

/** What `graft compare` writes as comparison.json. */
export interface Results {
  /** The title of the page. */
  readonly title: string;
  /** Year, month, day. */
  readonly date: string;
  /** The metric of the base model before training, where it can be measured. */
  readonly before: Metric | undefined;
  /** The methods that were measured. */
  readonly outcomes: readonly Outcome[];
  /** The methods that failed. */
  readonly failed: readonly Failure[];
  /** The loss whose steps are counted. */
  readonly loss: number;
}

/** Reads results that `writeResults` wrote. */
export const readResults = (file: string): Results => fromWire(JSON.parse(readFileSync(file, 'utf8'))) as Results;

/** Writes results as JSON, with names in snake_case. */
export function writeResults(file: string, results: Results): void {
  writeText(file, `${JSON.stringify(toWire(results), null, 1)}\n`);
}

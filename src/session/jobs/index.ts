export type { MemoryPlan } from './doctor.ts';

import { runTraining } from '../../train/index.ts';
import { releaseModel } from '../resident.ts';
import { combineJob } from './combine.ts';
import { doctorJob } from './doctor.ts';
import { classifyJob, evaluateJob } from './evaluate.ts';
import { generateJob } from './generate.ts';
import { logitsJob } from './logits.ts';
import { mergeJob } from './merge.ts';
import { predictJob } from './predict.ts';

/** A job that loads its model by itself: the one that is loaded makes room. */
const alone =
  <A extends unknown[], R>(job: (...args: A) => R) =>
  (...args: A): R => {
    releaseModel();
    return job(...args);
  };

/** What the engine thread can be asked for. */
export const jobs = {
  train: alone(runTraining),
  generate: generateJob,
  evaluate: evaluateJob,
  choose: classifyJob,
  predict: predictJob,
  logits: logitsJob,
  merge: alone(mergeJob),
  combine: combineJob,
  doctor: doctorJob,
} as const;

import { runTraining } from '../train/index.ts';
import { doctorJob } from './doctor.ts';
import { evaluateJob } from './evaluate.ts';
import { generateJob } from './generate.ts';
import { logitsJob } from './logits.ts';
import { mergeJob } from './merge.ts';

/** What the engine thread can be asked for. */
export const jobs = {
  train: runTraining,
  generate: generateJob,
  evaluate: evaluateJob,
  logits: logitsJob,
  merge: mergeJob,
  doctor: doctorJob,
} as const;

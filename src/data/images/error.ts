import { GraftError } from '../../base/index.ts';

/** The error for an image or a preprocessor_config.json that cannot be used. */
export const imageError = (problem: string, place: string, hint?: string): GraftError =>
  new GraftError('input', problem, { place, ...(hint && { hint }) });

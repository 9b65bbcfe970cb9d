import { statSync } from 'node:fs';
import { join } from 'node:path';
import { requireNew, resolveModel } from '../../io/index.ts';
import { consolidate } from '../../train/index.ts';
import type { JobContext } from '../job-context.ts';
import { releaseResidents } from '../resident.ts';
import type { Progress } from './rows.ts';

/** The checkpoint that becomes a model, and where that goes. */
export interface MergeCheckpointSettings {
  /** A folder step-… of the folder checkpoints in the directory of a run of full fine-tuning. */
  readonly checkpoint: string;
  /** New directory for the model. */
  readonly out: string;
}

/** The model that was written. */
export interface MergeCheckpointResult {
  /** Its directory. */
  readonly out: string;
  /** Bytes of the file of its weights. */
  readonly bytes: number;
  /** Files and folders of the base that are not copied. */
  readonly notCopied: readonly string[];
}

/** Writes the files of a checkpoint as one model, as the run would have done that ended there. */
export async function mergeCheckpoint(
  { model, checkpoint, out }: MergeCheckpointSettings & { readonly model: string },
  context: JobContext<Progress>,
): Promise<MergeCheckpointResult> {
  requireNew(out);
  releaseResidents();
  const notCopied = consolidate(checkpoint, await resolveModel(model), out, (done, total) => {
    context.throwIfStopped();
    context.emit({ type: 'progress', done, total });
  });
  return { out, bytes: statSync(join(out, 'model.safetensors')).size, notCopied };
}

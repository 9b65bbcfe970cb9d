/** A model of a checkpoint: what a run would write that ended there. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { tokenizerFilesOf } from '../data/index.ts';
import { LaterWeights, loadModels, readTensor, saveModel } from '../models/index.ts';
import { namedTensors } from '../nn/index.ts';
import { give, noGrad, type Tensor, takeAway } from '../tensor/index.ts';
import { openPart } from './checkpoints.ts';

/**
 * Writes the model of a checkpoint of full fine-tuning, whichever and however many processes wrote it, one tensor at a time. Of the base only
 * the list of its weights is read.
 * @param progress is called before each tensor; it may throw to stop
 * @returns what stands beside the base's weights and is not copied
 * @throws GraftError 'input' for a folder without a checkpoint, 'mismatch' where the checkpoint is no model of this base
 */
export function consolidate(
  checkpoint: string,
  modelPath: string,
  out: string,
  progress: (written: number, total: number) => void = () => {},
): readonly string[] {
  if (!existsSync(join(checkpoint, 'state.json')))
    throw new GraftError('input', 'there is no checkpoint', {
      place: checkpoint,
      hint: 'Name a folder step-… of the folder checkpoints in a run directory',
    });
  using source = openPart(checkpoint, 'parameters');
  using later = new LaterWeights();
  using model = loadModels(modelPath, [{}], {}, later)[0]!;
  const keys = new Map<Tensor, string>();
  for (const [key, tensor] of namedTensors(model.root)) if (!keys.has(tensor)) keys.set(tensor, key);
  const fits = ([tensor, key]: [Tensor, string]) => source.entries.get(key)?.shape.join() === tensor.shape.join();
  const missing = [...keys].find((entry) => !fits(entry));
  if (missing || source.entries.size > keys.size) {
    const problem = missing
      ? `it has no ${missing[1]} [${missing[0].shape.join(', ')}]`
      : 'it holds more than this model has';
    throw new GraftError('mismatch', `the checkpoint is not one of full fine-tuning of this model: ${problem}`, {
      place: checkpoint,
      hint: 'Give the base that was trained; a run that trains an adapter, or a head with other labels, is ended with graft train',
    });
  }
  let here: Tensor | undefined;
  const present = (tensor: Tensor) => {
    if (here) takeAway(here);
    here = tensor;
    noGrad(() => give(tensor, readTensor(source, keys.get(tensor)!)));
  };
  return saveModel(model, out, modelPath, 'float32', tokenizerFilesOf(modelPath), { present, progress });
}

/** Classification of images: one class of several, with the losses and metrics of text. */
import { GraftError } from '../base/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { classTask, requireLabel, targetOf } from './classes.ts';
import type { Task, TaskOptions } from './task.ts';
import { unfit } from './text-rows.ts';

export const imageClassification = (head: TaskHead, options: TaskOptions): Task<Float32Array> => ({
  ...classTask(head, options),

  rows(example, place, { pixels, imageTokens, labelled }) {
    if (example.kind !== 'image') throw unfit(example, head.name, 'image and label, or a folder of images', place);
    if (!pixels || !imageTokens) throw new GraftError('usage', 'this model does not see images', { place });
    const label = labelled ? requireLabel(example.label, place) : undefined;
    const row = {
      ids: new Int32Array(imageTokens),
      labels: new Int32Array(),
      pixels: () => pixels(example),
      place,
      example,
      ...(label !== undefined && { target: targetOf(label, head, place) }),
    };
    return { rows: [row], cut: 0 };
  },
});

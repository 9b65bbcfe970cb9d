/** Classification of images: one class of several, with the losses and metrics of text. */
import type { TaskHead } from '../nn/index.ts';
import { classTask, requireLabel, targetOf } from './classes.ts';
import { imageRow } from './image-rows.ts';
import type { Task, TaskOptions } from './task.ts';
import { unfit } from './text-rows.ts';

export const imageClassification = (head: TaskHead, options: TaskOptions): Task<Float32Array> => ({
  ...classTask(head, options),

  rows(example, place, tools) {
    if (example.kind !== 'image') throw unfit(example, head.name, 'image and label, or a folder of images', place);
    const seen = imageRow(example, place, tools);
    const label = tools.labelled ? requireLabel(example.label, place) : undefined;
    const row = {
      ...seen,
      example,
      ...(label !== undefined && { target: targetOf(label, head, place) }),
    };
    return { rows: [row], cut: 0 };
  },
});

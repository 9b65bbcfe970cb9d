/** Classification of images: one class of several, with the losses and metrics of text. */
import type { TaskHead } from '../nn/index.ts';
import { classificationTask, requireLabel, targetOf } from './classification.ts';
import { imageRow } from './image-rows.ts';
import type { Task, TaskOptions } from './task.ts';
import { unsupportedRow } from './text-rows.ts';

export const imageClassification = (head: TaskHead, options: TaskOptions): Task<Float32Array> => ({
  ...classificationTask(head, options),

  rows(example, place, tools) {
    if (example.kind !== 'image')
      throw unsupportedRow(example, head.name, 'rows with image and label, or a folder of images', place);
    const base = imageRow(example, place, tools);
    const label = tools.labelled ? requireLabel(example.label, place) : undefined;
    const row = {
      ...base,
      example,
      ...(label !== undefined && { target: targetOf(label, head, place) }),
    };
    return { rows: [row], cutTokens: 0 };
  },
});

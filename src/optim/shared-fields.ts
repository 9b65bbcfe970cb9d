/** Fields that several optimizers have. */
import { z } from 'zod';

export const weightDecay = z
  .number()
  .nonnegative()
  .default(0)
  .describe('Weight decay of matrices, times the learning rate (decoupled); biases and norms are never decayed.');

export const clipGradValue = z
  .number()
  .positive()
  .optional()
  .describe(
    'Clips each number of a gradient to this magnitude. Clipping by the norm of all gradients is not possible here.',
  );

import type { Family } from './family.ts';
import { llama } from './llama.ts';

/** Every model family; a new one is a file and a line here. */
export const families: readonly Family[] = [llama];

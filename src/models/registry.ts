import { bert, roberta } from './bert.ts';
import type { Family } from './family.ts';
import { gpt2 } from './gpt2.ts';
import { llama } from './llama.ts';

/** Every model family; a new one is a file and a line here. */
export const families: readonly Family[] = [llama, gpt2, bert, roberta];

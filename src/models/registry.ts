import { bert, roberta } from './bert.ts';
import { distilbert } from './distilbert.ts';
import type { Family } from './family.ts';
import { gptNeox } from './gpt-neox.ts';
import { gpt2 } from './gpt2.ts';
import { llama } from './llama.ts';
import { deit, vit } from './vit.ts';

/** All model families; a new one is a file and a line here. */
export const families: readonly Family[] = [llama, gpt2, gptNeox, bert, roberta, distilbert, vit, deit];

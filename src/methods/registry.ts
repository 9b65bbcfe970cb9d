import { adalora } from './adalora.ts';
import { bottleneck } from './bottleneck.ts';
import { full } from './full.ts';
import { fusion } from './fusion.ts';
import { ia3 } from './ia3.ts';
import { lora } from './lora.ts';
import { multitaskPrompt } from './multitask-prompt.ts';
import { pTuning } from './p-tuning.ts';
import { prefix } from './prefix.ts';
import { prompt } from './prompt.ts';

/** Every method; a new one is a file and a line here. Recipes, help and documents derive from it. */
export const methods = {
  lora,
  adalora,
  ia3,
  full,
  bottleneck,
  fusion,
  prompt,
  'multitask-prompt': multitaskPrompt,
  prefix,
  'p-tuning': pTuning,
} as const;

import { bottleneck, fusion } from './bottleneck/index.ts';
import { full } from './full.ts';
import { ia3 } from './ia3.ts';
import { adalora, lora } from './lora/index.ts';
import { multitaskPrompt, prefix, prompt, pTuning } from './prompt/index.ts';

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

import { bottleneck, fusion } from './bottleneck/index.ts';
import { full } from './full.ts';
import { ia3 } from './ia3.ts';
import { layerwise } from './layerwise/index.ts';
import { adalora, lora } from './lora/index.ts';
import { multitaskPrompt, prefix, prompt, pTuning } from './prompt/index.ts';
import { qat } from './qat/index.ts';

/** Every method by its name in recipes; a new one is one file and one line here. Recipes, help and documents derive from it. */
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
  qat,
  layerwise,
} as const;

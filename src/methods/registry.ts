import { full } from './full.ts';
import { lora } from './lora.ts';

/** Every method; a new one is a file and a line here. Recipes, help and documents derive from it. */
export const methods = { lora, full } as const;

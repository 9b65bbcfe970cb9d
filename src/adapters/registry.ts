/** Every layout that Graft loads and saves; a new one is a folder and an entry here. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { readJsonObject } from '../io/index.ts';
import { type Method, methods } from '../methods/index.ts';
import { adapterHubLayout } from './adapterhub/index.ts';
import { ggufLayout } from './gguf/index.ts';
import type { Layout } from './layout.ts';
import { isMlx } from './mlx/index.ts';
import { peftLayout } from './peft/index.ts';

const layouts: readonly Layout[] = [adapterHubLayout, peftLayout, ggufLayout];

/** The layout of an adapter directory. @throws GraftError 'input' where it is none that Graft loads */
export function layoutOf(dir: string): Layout {
  const layout = layouts.find((candidate) => candidate.holds(dir));
  if (layout) return layout;
  const place = join(dir, 'adapter_config.json');
  if (!existsSync(place)) {
    throw new GraftError('input', 'this is not an adapter: it has no adapter_config.json', { place: dir });
  }
  const { version } = readJsonObject(place);
  const ofAdapterHub = typeof version === 'string' && version.startsWith('adapters.');
  const format = ofAdapterHub ? "in AdapterHub's format" : isMlx(dir) ? "in mlx-lm's format" : undefined;
  throw new GraftError(
    'input',
    `this adapter is ${format ?? 'in an unknown format'}, not PEFT's: peft_type is missing`,
    {
      place,
      ...(format && { hint: 'Try graft convert --to peft' }),
    },
  );
}

/** The layout in which adapters of a method are saved. @throws GraftError 'usage' where none supports the method */
export function layoutFor(methodName: string): Layout {
  const method = methods[methodName as keyof typeof methods] as Method<unknown>;
  const layout = layouts.find((candidate) => candidate.supports(method));
  if (layout) return layout;
  throw new GraftError('usage', `PEFT has no format for the method '${methodName}'`, {
    hint: 'Save the whole model instead',
  });
}

import type { ServerOptions } from './options.ts';
import type { Server } from './serve.ts';

export type { ResolveAdapter } from './adapters/index.ts';
export { readKeys } from './keys.ts';
export type { LimitChoices, Limits } from './limits.ts';
export {
  arrivals,
  type LoadShape,
  type LoadSummary,
  modelsOf,
  type Percentiles,
  runLoad,
  summarize,
} from './load/index.ts';
export type { ServerOptions } from './options.ts';
export type { Server } from './serve.ts';

/**
 * Serves a model and its adapters over HTTP, as OpenAI's API has it (docs/serving.md).
 * @throws GraftError 'usage' for wrong options, among them an address that others reach without API keys; what loading throws
 */
export async function serve(options: ServerOptions): Promise<Server> {
  // HTTP is loaded by who serves only.
  const { serve: start } = await import('./serve.ts');
  return start(options);
}

import type { GenerationDelta, GenerationEnd, GenerationRequest } from '../../generate/index.ts';
import type { JobContext } from '../job-context.ts';
import { residentOf } from '../resident.ts';
import { dropServed, registerServed, ServedModel, servedOf } from '../served-model.ts';
import type { AddAdapterOptions, ServeOptions, ServingStats } from '../serving-types.ts';

/** Begins to answer many requests at once with a model; the other jobs here name it by the number that is returned. */
export async function serve({
  modelId,
  ...options
}: ServeOptions & { readonly modelId: number }): Promise<{ readonly servingId: number }> {
  const model = new ServedModel(residentOf(modelId), options);
  await model.addOwnAdapters();
  return { servingId: registerServed(model) };
}

export interface SubmitArgs {
  readonly servingId: number;
  readonly request: GenerationRequest;
}

/** Answers one request beside others. Emits it piece by piece. */
export const submit = (
  { servingId, request }: SubmitArgs,
  context: JobContext<GenerationDelta>,
): Promise<GenerationEnd> => servedOf(servingId).submit(request, context);

export const servingStats = ({ servingId }: { readonly servingId: number }): ServingStats =>
  servedOf(servingId).stats();

export const serveAdapter = ({
  servingId,
  name,
  dir,
  ...options
}: AddAdapterOptions & { readonly servingId: number; readonly name: string; readonly dir: string }): Promise<void> =>
  servedOf(servingId).adapters.add(name, dir, options);

export const dropAdapter = ({ servingId, name }: { readonly servingId: number; readonly name: string }): void =>
  servedOf(servingId).adapters.remove(name);

export async function closeServing({
  servingId,
  drainMs,
}: {
  readonly servingId: number;
  readonly drainMs?: number | undefined;
}): Promise<void> {
  await servedOf(servingId).close(drainMs);
  dropServed(servingId);
}

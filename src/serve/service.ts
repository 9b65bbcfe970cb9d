import type { ChatTemplate, Tokenizer } from '../data/index.ts';
import type { WeightedAdapter } from '../generate/index.ts';
import type { TaskName } from '../nn/index.ts';
import type { ModelInfo, Serving } from '../session/index.ts';
import type { AdapterRegistry, AllowedFolders, ServedAdapter } from './adapters/index.ts';
import type { Encoder } from './encoder.ts';
import { badRequest, modelNotFound } from './errors.ts';
import type { SchemaGrammars } from './grammar/index.ts';
import type { Heads } from './heads.ts';
import type { Limits } from './limits.ts';
import type { Metrics } from './metrics.ts';

/** What routes work with. */
export interface Service {
  /** Name of the base. */
  readonly base: string;
  readonly info: ModelInfo;
  /** When the server started; seconds since 1970. */
  readonly created: number;
  readonly tokenizer: Tokenizer;
  readonly encoder: Encoder;
  /** Undefined for a model without a chat template. */
  readonly chat: ChatTemplate | undefined;
  /** Undefined for a base that generates no text. */
  readonly engine: Serving | undefined;
  readonly heads: Heads;
  readonly adapters: AdapterRegistry;
  /** Where adapters may be loaded from on request. */
  readonly folders: AllowedFolders;
  readonly grammars: SchemaGrammars;
  readonly metrics: Metrics;
  readonly limits: Limits;
  /** Whether it only ends what runs. */
  readonly isDraining: () => boolean;
  readonly log: (line: string) => void;
}

/** What a request's `model` names. */
export interface Named {
  /** As the request names it. */
  readonly name: string;
  /** Undefined: the base. */
  readonly adapter: ServedAdapter | undefined;
  readonly task: TaskName;
}

/** @throws RequestError 404 for a name that neither the base nor an adapter has */
export async function named({ base, info, adapters }: Service, name: string): Promise<Named> {
  if (name === base) return { name, adapter: undefined, task: info.task };
  const adapter = await adapters.get(name);
  if (!adapter) throw modelNotFound(name);
  return { name, adapter, task: adapter.task };
}

/** What generates text: the engine, with an adapter, a mixture, or the base alone. */
export interface Generator {
  readonly engine: Serving;
  /** As the request names the model. */
  readonly name: string;
  readonly adapter: string | undefined;
  readonly mixture: readonly WeightedAdapter[] | undefined;
}

/**
 * What a request for text names.
 * @param mixture adapters that the base is used with
 * @throws RequestError 404 for an unknown name, 400 for a model that generates no text
 */
export async function generator(
  service: Service,
  name: string,
  mixture: readonly WeightedAdapter[] | undefined,
): Promise<Generator> {
  const found = await named(service, name);
  const { engine } = service;
  if (mixture) {
    if (found.adapter)
      throw badRequest(`'adapters' are mixed on the base: set 'model' to ${service.base}.`, 'adapters', 'invalid');
    if (new Set(mixture.map((one) => one.name)).size < mixture.length)
      throw badRequest('An adapter is named twice.', 'adapters', 'invalid');
    for (const one of mixture) await generator(service, one.name, undefined);
  }
  if (engine && found.task === 'causal-lm') return { engine, name, adapter: found.adapter?.name, mixture };
  throw badRequest(`The model is for ${found.task}, and does not generate text.`, 'model', 'wrong_task');
}

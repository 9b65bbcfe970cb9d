import { basename } from 'node:path';
import type { FastifyInstance } from 'fastify';
import type { ServedAdapter } from '../adapters/index.ts';
import { modelNotFound } from '../errors.ts';
import type { Service } from '../service.ts';

/** An entry of the list, with vLLM's fields. `root` is what an adapter's files are named by, without the path to them. */
const entry = (service: Service, adapter: ServedAdapter | undefined) => ({
  id: adapter?.name ?? service.base,
  object: 'model',
  created: adapter?.created ?? service.created,
  owned_by: 'graft',
  root: adapter ? basename(adapter.dir) : service.base,
  parent: adapter ? service.base : null,
  max_model_len: service.info.contextLength,
  task: adapter?.task ?? service.info.task,
});

/** GET /v1/models and /v1/models/NAME. */
export function modelRoutes(app: FastifyInstance, service: Service): void {
  app.get('/v1/models', async () => ({
    object: 'list',
    data: [undefined, ...service.adapters.list()].map((adapter) => entry(service, adapter)),
  }));
  app.get<{ Params: { '*': string } }>('/v1/models/*', async ({ params: { '*': name } }) => {
    if (name === service.base) return entry(service, undefined);
    const adapter = service.adapters.list().find((one) => one.name === name);
    if (!adapter) throw modelNotFound(name);
    return entry(service, adapter);
  });
}

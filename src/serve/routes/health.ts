import type { FastifyInstance } from 'fastify';
import type { Service } from '../service.ts';

/** GET /health and /metrics. */
export function healthRoutes(app: FastifyInstance, { base, metrics, engine }: Service): void {
  app.get('/health', async () => {
    await engine?.stats(); // the engine thread answers
    return { status: 'ok', model: base };
  });
  app.get('/metrics', async (_, reply) => reply.type(metrics.contentType).send(await metrics.text()));
}

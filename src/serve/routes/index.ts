import type { FastifyInstance } from 'fastify';
import type { Service } from '../service.ts';
import { adapterRoutes } from './adapters.ts';
import { chatRoute } from './chat.ts';
import { completionsRoute } from './completions.ts';
import { headRoutes } from './heads.ts';
import { healthRoutes } from './health.ts';
import { modelRoutes } from './models.ts';
import { tokenRoutes } from './tokens.ts';

/** Puts every route on the server. */
export function addRoutes(app: FastifyInstance, service: Service): void {
  for (const add of [modelRoutes, chatRoute, completionsRoute, headRoutes, adapterRoutes, tokenRoutes, healthRoutes])
    add(app, service);
}

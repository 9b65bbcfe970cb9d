import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import { checkName } from '../adapters/index.ts';
import { badRequest } from '../errors.ts';
import type { Service } from '../service.ts';
import { readBody } from '../wire/index.ts';

const loadSchema = z.strictObject({
  lora_name: z.string(),
  lora_path: z.string().min(1).max(4096),
  load_inplace: z.boolean().default(false),
  base_model_name: z.string().optional(),
});
const unloadSchema = z.strictObject({ lora_name: z.string(), lora_int_id: z.int().optional() });

/** POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them, for adapters of all kinds. */
export function adapterRoutes(app: FastifyInstance, service: Service): void {
  app.post('/v1/load_lora_adapter', async (request, reply) => {
    const {
      lora_name: name,
      lora_path: path,
      load_inplace: replace,
      base_model_name: base,
    } = readBody(loadSchema, request.body);
    checkName(name);
    if (base !== undefined && base !== service.base)
      throw badRequest(`'base_model_name' must be ${service.base}.`, 'base_model_name', 'invalid');
    const isLoaded = await service.adapters.load(name, service.folders.dirOf(path), replace);
    const later = isLoaded ? '' : '; it is loaded, and may turn out not to fit, with its first request';
    return reply.type('text/plain; charset=utf-8').send(`Success: LoRA adapter '${name}' added successfully${later}`);
  });
  app.post('/v1/unload_lora_adapter', async (request, reply) => {
    const { lora_name: name, lora_int_id: number } = readBody(unloadSchema, request.body);
    if (number !== undefined)
      throw badRequest("'lora_int_id' is not supported: adapters are known by name.", 'lora_int_id', 'unsupported');
    await service.adapters.remove(name);
    service.metrics.forget(name);
    return reply.type('text/plain; charset=utf-8').send(`Success: LoRA adapter '${name}' removed successfully`);
  });
}

import { z } from 'zod';
import type { Quantize } from '../models/index.ts';
import { type Activation, activationModes, quantizeModes } from '../quant/index.ts';
import type { ServeOptions } from '../session/index.ts';
import type { ResolveAdapter } from './adapters/index.ts';
import { defaultLimits, type LimitChoices } from './limits.ts';

/** Options of a server. */
export interface ServerOptions extends ServeOptions {
  /** A Hugging Face directory, a .gguf file, or a hub id. */
  readonly model: string;
  /** Name of the base in requests. Default: the last part of the model's path. */
  readonly modelName?: string | undefined;
  /** How weights are held in memory. Default: keep, as the file has them. */
  readonly quantize?: Quantize | undefined;
  /** Where it computes. auto: the first GPU that can be used, else the processor; cpu; cuda; or of several GPUs cuda:1. Default: auto. */
  readonly device?: string | undefined;
  /** How layers with weights in blocks take their inputs: as they are, or rounded to 8 bits as llama.cpp does. Default: exact. */
  readonly activation?: Activation | undefined;
  /** A folder whose sub-directories are adapters, each under its name; it is watched. Default: none. */
  readonly adapters?: string | undefined;
  /** Seconds between two looks at the folder. Default: 2. */
  readonly rescanSeconds?: number | undefined;
  /** More folders that /v1/load_lora_adapter may load from, and links in `adapters` may lead to. Default: none. */
  readonly allowAdaptersFrom?: readonly string[] | undefined;
  /** Names of adapters that are loaded at the start and stay in memory; others leave it by recency. Default: none. */
  readonly pins?: readonly string[] | undefined;
  /** Finds an adapter for a name that is not known: its directory, or undefined. Default: such names are answered with 404. */
  readonly resolveAdapter?: ResolveAdapter | undefined;
  /** Address to listen at. Default: 127.0.0.1, which only this machine reaches. */
  readonly host?: string | undefined;
  /** Port; 0 takes one that is free. Default: 8000. */
  readonly port?: number | undefined;
  /** Keys, one of which each request has to carry as `Authorization: Bearer KEY`. Needed for an address that others reach. */
  readonly apiKeys?: readonly string[] | undefined;
  /** Seconds that answers have to end when the server closes; then they are cut. Default: 30. */
  readonly drainSeconds?: number | undefined;
  /** Bounds on requests. Default: those of `Limits`. */
  readonly limits?: LimitChoices | undefined;
  /** Is given a line about what happens beside the requests. Default: printed on stderr. */
  readonly log?: ((line: string) => void) | undefined;
}

const count = z.int().positive();
const path = z.string().min(1);
const positive = z.number().positive();
const limit = (name: string) =>
  (name.endsWith('Seconds') ? positive : name === 'requestsPerMinute' ? z.int().nonnegative() : count).optional();
const limits = z.strictObject(
  Object.fromEntries(Object.keys(defaultLimits).map((name) => [name, limit(name)])),
) as z.ZodType<LimitChoices>;

export const serverOptionsSchema: z.ZodType<ServerOptions> = z.strictObject({
  model: path,
  modelName: path.optional(),
  quantize: z.enum(quantizeModes).optional(),
  device: path.optional(),
  activation: z.enum(activationModes).optional(),
  adapters: path.optional(),
  rescanSeconds: positive.optional(),
  allowAdaptersFrom: z.array(path).optional(),
  pins: z.array(z.string()).optional(),
  resolveAdapter: z.custom<ResolveAdapter>((value) => typeof value === 'function').optional(),
  host: path.optional(),
  port: z.int().min(0).max(65535).optional(),
  apiKeys: z.array(z.string()).optional(),
  maxBatchTokens: count.optional(),
  maxRunning: count.optional(),
  maxQueue: count.optional(),
  kvMemory: positive.optional(),
  adapterMemory: z.number().nonnegative().optional(),
  threads: count.optional(),
  drainSeconds: z.number().nonnegative().optional(),
  limits: limits.optional(),
  log: z.custom<(line: string) => void>((value) => typeof value === 'function').optional(),
});

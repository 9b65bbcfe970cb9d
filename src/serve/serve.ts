import { statSync } from 'node:fs';
import type { Server as HttpServer } from 'node:http';
import { isIP } from 'node:net';
import { basename } from 'node:path';
import { GraftError, parseWith } from '../base/index.ts';
import { ChatTemplate, tokenizerOf } from '../data/index.ts';
import { Session } from '../session/index.ts';
import { AdapterFolder, AdapterRegistry, AllowedFolders } from './adapters/index.ts';
import { Encoder } from './encoder.ts';
import { SchemaGrammars } from './grammar/index.ts';
import { Heads } from './heads.ts';
import { httpApp } from './http/index.ts';
import { Keys } from './keys.ts';
import { limitsOf } from './limits.ts';
import { Metrics } from './metrics.ts';
import { type ServerOptions, serverOptionsSchema } from './options.ts';
import { addRoutes } from './routes/index.ts';
import type { Service } from './service.ts';
import { now } from './wire/index.ts';

/** A server that runs. */
export interface Server extends AsyncDisposable {
  /** Where it is reached, as `http://127.0.0.1:8000`; OpenAI's clients take this with `/v1`. */
  readonly url: string;
  /** Address that it listens at. */
  readonly host: string;
  /** Port that it listens at. */
  readonly port: number;
  /** Name of the base. */
  readonly base: string;
  /** Names of the adapters, as they are now. */
  readonly adapters: readonly string[];
  /** Looks at the folder of adapters now. */
  rescan(): Promise<void>;
  /**
   * Ends the server: new requests are refused at once, answers that run have `drainSeconds` to end, then they are cut with the
   * reason. Default: as the server was started.
   */
  close(options?: { readonly drainSeconds?: number | undefined }): Promise<void>;
}

const isLoopback = (host: string): boolean =>
  host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));

function requireFolder(path: string, option: string): void {
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory()) return;
  throw new GraftError('usage', `there is no folder ${path}`, { place: option });
}

/**
 * Serves a model and its adapters over HTTP, as OpenAI's API has it.
 * @throws GraftError 'usage' for wrong options, among them an address that others reach without API keys; what loading throws
 */
export async function serve(given: ServerOptions): Promise<Server> {
  const options = parseWith(serverOptionsSchema, given, 'serve');
  const { host = '127.0.0.1', port = 8000, apiKeys = [], log = (line: string) => console.error(line) } = options;
  if (!isLoopback(host) && apiKeys.length === 0) {
    throw new GraftError('usage', `${host} is reached by other machines, and there is no API key`, {
      place: 'host',
      hint: 'Set API keys (--api-key-file), or listen at 127.0.0.1',
    });
  }
  const limits = limitsOf(options.limits);
  const keys = new Keys(apiKeys, limits);
  if (options.adapters !== undefined) requireFolder(options.adapters, 'adapters');
  for (const folder of options.allowAdaptersFrom ?? []) requireFolder(folder, 'allowAdaptersFrom');
  if (options.rescanSeconds !== undefined && options.adapters === undefined)
    throw new GraftError('usage', 'there is no folder of adapters to look at', {
      place: 'rescanSeconds (--rescan-seconds)',
      hint: 'Give the folder (--adapters), or leave it out',
    });

  await using opening = new AsyncDisposableStack();
  const session = opening.use(new Session({ log }));
  const { model: id, quantize, activation, threads, device } = options;
  const model = opening.use(await session.load(id, { quantize, activation, threads, device }));
  const { info } = model;
  for (const note of info.notes) log(`note: ${note}`);
  const { maxBatchTokens, maxRunning, maxQueue, kvMemory, adapterMemory } = options;
  const ofGeneration = { maxBatchTokens, maxRunning, maxQueue, kvMemory, adapterMemory };
  const [unread] = Object.entries(ofGeneration).find(([, value]) => value !== undefined) ?? [];
  if (info.task !== 'causal-lm' && unread !== undefined)
    throw new GraftError('usage', `a model of ${info.task} generates no text, and ${unread} is for that`, {
      place: unread,
      hint: 'Leave it out',
    });
  const engine =
    info.task === 'causal-lm'
      ? opening.use(model.serve({ maxBatchTokens, maxRunning, maxQueue, kvMemory, adapterMemory, threads }))
      : undefined;
  await engine?.stats(); // what makes serving impossible is told now
  const tokenizer = tokenizerOf(info.path);
  const base = options.modelName ?? nameOf(id);
  const adapters = new AdapterRegistry(engine, base, info.task, {
    resolve: options.resolveAdapter,
    pins: options.pins,
  });
  const roots = [options.adapters, ...(options.allowAdaptersFrom ?? [])].filter((root) => root !== undefined);
  const grammars = new SchemaGrammars(tokenizer, info.vocabSize, limits);
  opening.defer(() => grammars.close());
  let draining = false;
  const service: Service = {
    base,
    info,
    created: now(),
    tokenizer,
    encoder: new Encoder(tokenizer, info.contextLength),
    chat: ChatTemplate.of(tokenizer),
    engine,
    heads: opening.use(new Heads(model, engine !== undefined, options, log)),
    adapters,
    folders: new AllowedFolders(roots),
    grammars,
    metrics: new Metrics(
      async () => engine?.stats(),
      () => adapters.size,
    ),
    limits,
    isDraining: () => draining,
    log,
  };

  let folder: AdapterFolder | undefined;
  if (options.adapters !== undefined) {
    folder = new AdapterFolder(options.adapters, service.folders, {
      onAdapter: (name, dir) => adapters.put(name, dir),
      async onRemoved(name) {
        await adapters.remove(name);
        service.metrics.forget(name);
      },
      log,
    });
    opening.defer(() => folder!.close());
    await folder.start(options.rescanSeconds ?? 2);
  }
  const served = new Set(adapters.list().map(({ name }) => name));
  const missing = options.pins?.filter((name) => !served.has(name)) ?? [];
  for (const name of missing) log(`the pinned adapter '${name}' is not there; it is loaded when it comes`);

  const app = httpApp(service, keys);
  opening.defer(() => app.close());
  addRoutes(app, service);
  try {
    await app.listen({ host, port });
  } catch (cause) {
    throw new GraftError(
      'environment',
      `the server cannot listen at ${host}, port ${port}: ${(cause as Error).message}`,
      {
        place: 'port',
        hint: 'Choose another port, or 0 for one that is free',
        cause,
      },
    );
  }
  const address = app.server.address() as { readonly port: number };
  const resources = opening.move();
  let closing: Promise<void> | undefined;
  const close = async (drainSeconds: number) => {
    draining = true;
    app.server.close(); // no new connections
    await folder?.close();
    await engine?.close({ drainMs: drainSeconds * 1000 });
    await whenRead(app.server);
    await resources.disposeAsync();
  };
  const server: Server = {
    url: `http://${host.includes(':') ? `[${host}]` : host}:${address.port}`,
    host,
    port: address.port,
    base,
    get adapters() {
      return adapters.list().map(({ name }) => name);
    },
    async rescan() {
      await folder?.look();
    },
    async close({ drainSeconds = options.drainSeconds ?? 30 } = {}) {
      closing ??= close(drainSeconds);
      await closing;
    },
    async [Symbol.asyncDispose]() {
      await server.close();
    },
  };
  return server;
}

/** Waits until clients have read their last answers, for five seconds at most. */
async function whenRead(server: HttpServer): Promise<void> {
  for (let i = 0; i < 100; i++) {
    server.closeIdleConnections();
    const open = await new Promise<number>((resolve) => server.getConnections((_, count) => resolve(count)));
    if (open === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** The name of a model by its path or id: the last part, without the ending of a file. */
const nameOf = (id: string): string => basename(id).replace(/\.gguf$/i, '') || 'base';

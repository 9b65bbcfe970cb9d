/** A server on the tiny model and its adapters, for the tests of one file. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { type Server, type ServerOptions, serve } from '../../src/serve/index.ts';
import { servedFolder } from '../samples/served.ts';

/** Starts a server once; it is closed, and its folder removed, after the last test. */
export async function runningServer(which?: readonly string[], options: Partial<ServerOptions> = {}) {
  const dir = mkdtempSync(join(tmpdir(), 'graft-serve-'));
  const { model, adapters } = await servedFolder(dir, which);
  const lines: string[] = [];
  const server: Server = await serve({
    model,
    adapters,
    port: 0,
    rescanSeconds: 0.1,
    log: (line) => lines.push(line),
    ...options,
  });
  after(async () => {
    await server.close({ drainSeconds: 0 });
    rmSync(dir, { recursive: true });
  });
  return { server, model, adapters, dir, lines, ...requests(server.url) };
}

export interface Answered {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  // biome-ignore lint/suspicious/noExplicitAny: answers are looked into, and a wrong look fails the test
  readonly body: any;
}

/** Requests to a server. */
export function requests(url: string, headers: Readonly<Record<string, string>> = {}) {
  const read = async (response: Response): Promise<Answered> => {
    const text = await response.text();
    const isJson = response.headers.get('content-type')?.startsWith('application/json');
    return { status: response.status, headers: response.headers, text, body: isJson ? JSON.parse(text) : undefined };
  };
  return {
    get: async (path: string): Promise<Answered> => read(await fetch(url + path, { headers })),
    post: async (path: string, body: unknown, more: Readonly<Record<string, string>> = {}): Promise<Answered> =>
      read(
        await fetch(url + path, {
          method: 'POST',
          headers: { 'content-type': 'application/json', ...headers, ...more },
          body: typeof body === 'string' || body instanceof Uint8Array ? (body as string) : JSON.stringify(body),
        }),
      ),
  };
}

/** The events of a stream's text. */
export const eventsOf = (text: string) =>
  text
    .split('\n\n')
    .filter((event) => event.startsWith('data: '))
    .map((event) => event.slice(6));

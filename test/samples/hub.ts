/** A local server in place of the Hugging Face hub, for tests without a network. */
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export const commit = 'c0ffee'.padEnd(40, '0');

/** Answers a request and returns true, or returns false. */
export type Handler = (request: IncomingMessage, response: ServerResponse, path: string) => boolean;

/**
 * Starts a server of the model or data set org/name with the four endpoints of the hub that Graft uses; it answers as the hub does (paged
 * list, ranges, LFS). `intercept` may answer a request first.
 */
export async function hub(
  files: Record<string, Buffer>,
  intercept: Handler = () => false,
  kind: 'model' | 'dataset' = 'model',
) {
  const api = `/api/${kind}s/org/name`;
  const resolved = `${kind === 'dataset' ? '/datasets' : ''}/org/name/resolve/${commit}/`;
  const requests: string[] = [];
  const hash = (algorithm: string, ...parts: (string | Buffer)[]) =>
    parts.reduce((h, part) => h.update(part), createHash(algorithm)).digest('hex');
  const entries = Object.entries(files).map(([path, bytes]) => ({
    type: 'file',
    path,
    size: bytes.byteLength,
    oid: hash('sha1', `blob ${bytes.byteLength}\0`, bytes),
    ...(bytes.byteLength > 1e6 && {
      oid: 'pointer',
      lfs: { oid: hash('sha256', bytes), size: bytes.byteLength, pointerSize: 130 },
    }),
  }));
  const server = createServer((request, response) => {
    const path = decodeURIComponent(request.url!);
    requests.push(path);
    if (intercept(request, response, path)) return;
    const json = (value: unknown, headers = {}) =>
      response.writeHead(200, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(value));
    if (/^\/revision\/(main|v1)\?/.test(path.startsWith(api) ? path.slice(api.length) : ''))
      json({ _id: '1', id: 'org/name', sha: commit, lastModified: '2025-01-01' });
    else if (path.startsWith(`${api}/tree/${commit}?`)) {
      const more = path.includes('cursor=2');
      json(
        more ? entries.slice(4) : [{ type: 'directory', path: 'q', size: 0 }, ...entries.slice(0, 4)],
        more ? {} : { link: `<${url}${path}&cursor=2>; rel="next"` },
      );
    } else {
      const bytes = files[path.startsWith(resolved) ? path.slice(resolved.length) : ''];
      const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? [];
      if (!bytes) response.writeHead(404, { 'x-error-code': 'EntryNotFound' }).end('no');
      else if (from === undefined)
        response.writeHead(200, { etag: '"x"', 'content-length': bytes.byteLength }).end(bytes);
      else
        response
          .writeHead(206, {
            etag: '"x"',
            'content-range': `bytes ${from}-${Math.min(Number(to), bytes.byteLength - 1)}/${bytes.byteLength}`,
          })
          .end(bytes.subarray(Number(from), Number(to) + 1));
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    endpoint: url,
    requests,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

import { isIP } from 'node:net';
import Fastify, { type FastifyError, type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import { type ErrorBody, RequestError, requestError, shuttingDown } from '../errors.ts';
import type { Keys } from '../keys.ts';
import type { Service } from '../service.ts';
import { jsonText } from './json.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** Of its API key; undefined where there are no keys. */
    keyId: string | undefined;
    /** Aborts when the client goes away before its answer is complete. */
    left: AbortSignal;
  }
}

/** Routes that need no key. */
const open = new Set(['/health']);

const sent = (reply: FastifyReply, error: RequestError): ErrorBody => {
  reply.code(error.status);
  if (error.retryAfter !== undefined) reply.header('retry-after', String(error.retryAfter));
  if (error.status === 401) reply.header('www-authenticate', 'Bearer');
  return error.body;
};

/** What Fastify and Node refuse, in our words. */
function ofFramework(error: FastifyError): RequestError | undefined {
  if (error.code === 'FST_ERR_CTP_BODY_TOO_LARGE')
    return new RequestError(413, 'The body is larger than this server takes.', { code: 'body_too_large' });
  if (error.code === 'FST_ERR_CTP_INVALID_MEDIA_TYPE' || error.code === 'FST_ERR_CTP_INVALID_CONTENT_TYPE')
    return new RequestError(415, 'The body must be JSON: send Content-Type: application/json.', { code: 'not_json' });
  if (error.code?.startsWith('FST_ERR_') || (error.statusCode && error.statusCode < 500))
    return new RequestError(error.statusCode ?? 400, 'The request cannot be read.', { code: 'invalid_request' });
  return undefined;
}

/** Answers for connections whose requests never became one. */
function refuseConnection(
  error: NodeJS.ErrnoException,
  socket: NodeJS.WritableStream & { destroy(): void; writable: boolean },
): void {
  const [status, phrase] =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? [431, 'Request Header Fields Too Large']
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? [408, 'Request Timeout']
        : [400, 'Bad Request'];
  if (!socket.writable || error.code === 'ECONNRESET') return void socket.destroy();
  const message =
    status === 431
      ? 'The headers are larger than this server takes.'
      : status === 408
        ? 'The request took too long to arrive.'
        : 'This is not an HTTP request.';
  const body = JSON.stringify(new RequestError(status as number, message, { code: 'invalid_request' }).body);
  const head = `HTTP/1.1 ${status} ${phrase}\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n`;
  socket.end(head + body);
}

/** Whether a Host header names this machine itself: a page of another site that resolves its name to it does not. */
function isLocal(host: string | undefined): boolean {
  const name = (host ?? '')
    .replace(/:\d+$/, '')
    .replace(/^\[|\]$/g, '')
    .toLowerCase();
  return name === 'localhost' || name.endsWith('.localhost') || isIP(name) !== 0;
}

/** The HTTP server without its routes: limits, keys, bodies, errors. */
export function httpApp(service: Service, keys: Keys): FastifyInstance {
  const { limits, log, metrics } = service;
  const app = Fastify({
    logger: false,
    bodyLimit: limits.bodyBytes,
    requestTimeout: limits.bodySeconds * 1000,
    keepAliveTimeout: 5000,
    forceCloseConnections: true,
    return503OnClosing: false,
    exposeHeadRoutes: true,
    clientErrorHandler: (error, socket) => refuseConnection(error, socket),
    frameworkErrors: (error, _request, reply) => {
      const known = ofFramework(error) ?? requestError(error, log);
      const body = sent(reply, known);
      reply.header('content-type', 'application/json; charset=utf-8').send(JSON.stringify(body) as never);
    },
    http: {
      maxHeaderSize: limits.headerBytes,
      headersTimeout: limits.headerSeconds * 1000,
      connectionsCheckingInterval: 1000,
    },
  });
  app.server.maxConnections = limits.connections;

  app.removeAllContentTypeParsers();
  const parse = app.getDefaultJsonParser('error', 'error');
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, body, done) => {
    try {
      const text = jsonText(body as Buffer);
      if (text.trim() === '') throw new RequestError(400, 'The body is empty.', { code: 'invalid_json' });
      parse(request, text, (error, value) =>
        done(error ? new RequestError(400, 'The body is not valid JSON.', { code: 'invalid_json' }) : null, value),
      );
    } catch (error) {
      done(error as Error);
    }
  });

  app.decorateRequest('keyId', undefined);
  app.decorateRequest('left');
  app.addHook('onRequest', async (request: FastifyRequest, reply: FastifyReply) => {
    const { raw } = reply;
    const left = new AbortController();
    request.left = left.signal;
    raw.once('close', () => {
      if (!raw.writableFinished) left.abort();
      metrics.requested(request.routeOptions.url ?? 'none', raw.statusCode);
    });
    reply.header('x-content-type-options', 'nosniff');
    if (service.isDraining()) {
      reply.header('connection', 'close');
      throw shuttingDown();
    }
    if (!keys.required && !isLocal(request.headers.host))
      throw new RequestError(403, 'The Host header must name this machine: localhost, or an address.', {
        code: 'wrong_host',
      });
    if (open.has(request.routeOptions.url ?? '')) return;
    request.keyId = keys.identify(request.headers.authorization);
    const leave = keys.enter(request.keyId);
    raw.once('close', leave);
  });
  app.setErrorHandler((error: FastifyError, _request, reply) => {
    const known = error instanceof RequestError ? error : (ofFramework(error) ?? requestError(error, log));
    return reply.send(sent(reply, known));
  });
  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split('?')[0]!;
    const method = (['GET', 'POST'] as const).find((one) => app.hasRoute({ method: one, url: path }));
    if (method) {
      reply.header('allow', method);
      return reply.send(
        sent(reply, new RequestError(405, `The method of this route is ${method}.`, { code: 'method_not_allowed' })),
      );
    }
    return reply.send(sent(reply, new RequestError(404, 'There is no such route.', { code: 'unknown_route' })));
  });
  return app;
}

import type { ServerResponse } from 'node:http';
import type { FastifyReply } from 'fastify';
import { requestError } from '../errors.ts';
import type { Limits } from '../limits.ts';

/** Waits until a client has read what was written. Returns false where it does not, or has gone. */
function isRead(response: ServerResponse, ms: number): Promise<boolean> {
  if (response.destroyed) return Promise.resolve(false);
  return new Promise((resolve) => {
    const settle = (read: boolean) => () => {
      clearTimeout(timer);
      response.off('drain', onDrain).off('close', onClose);
      resolve(read);
    };
    const [onDrain, onClose] = [settle(true), settle(false)];
    const timer = setTimeout(settle(false), ms);
    response.once('drain', onDrain).once('close', onClose);
  });
}

/**
 * Sends events as they come, then `[DONE]`. An error before the first event is answered with its status; a later one is the last event.
 * While the client reads nothing, nothing more is asked of `events`; leaving them ends what makes them.
 */
export async function sendEvents(
  reply: FastifyReply,
  events: AsyncGenerator<object, void, undefined>,
  { limits, log }: { readonly limits: Limits; readonly log: (line: string) => void },
): Promise<void> {
  const first = await events.next(); // its error still has a status
  reply.hijack();
  const { raw } = reply;
  raw.writeHead(200, {
    ...(reply.getHeaders() as Record<string, string>),
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache, no-transform',
    'x-accel-buffering': 'no',
  });
  const write = (data: string) => raw.write(`data: ${data}\n\n`);
  try {
    for (let next = first; !next.done; next = await events.next()) {
      if (write(JSON.stringify(next.value)) || (await isRead(raw, limits.stallSeconds * 1000))) continue;
      raw.destroy();
      return;
    }
    write('[DONE]');
    raw.end();
  } catch (error) {
    if (!raw.destroyed) {
      write(JSON.stringify(requestError(error, log).body));
      raw.end();
    }
  } finally {
    await events.return().catch(() => {});
  }
}

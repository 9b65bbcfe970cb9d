/** Serving on `LoadedModel.generate`, one request at a time. */
import { GraftError } from '../base/index.ts';
import type { Tokenizer } from '../data/index.ts';
import type { GenerationDelta, GenerationEnd, GenerationRequest } from '../generate/index.ts';
import { type LoadedModel, queueFull, type Serving, type ServingStats } from '../session/index.ts';
import { Running } from '../session/running.ts';

export function oneAtATime(model: LoadedModel, tokenizer: Tokenizer, maxQueue: number): Serving {
  let waiting = 0;
  const names = new Map<string, string>();
  const serving: Serving = {
    submit(request: GenerationRequest, { signal } = {}) {
      const left = new AbortController();
      return new Running<GenerationDelta, GenerationEnd>(
        async (tell) => {
          if (waiting >= maxQueue)
            throw new GraftError('state', 'too many requests wait', { data: { reason: queueFull } });
          waiting++;
          const start = performance.now();
          let first = 0;
          const either = signal ? AbortSignal.any([signal, left.signal]) : left.signal;
          const bos = tokenizer.bosId;
          const ids = request.promptIds[0] === bos ? request.promptIds.slice(1) : request.promptIds;
          const { adapter, maxNewTokens, seed, stop, temperature, topK, topP, minP, repetitionPenalty } = request;
          try {
            const running = model.generate(tokenizer.decode(ids), {
              ...{ adapter, maxNewTokens, seed, stop, temperature, topK, topP, minP, repetitionPenalty },
              signal: either,
            });
            for await (const text of running) {
              first ||= performance.now() - start;
              tell({ text, ids: [] });
            }
            const { text, ids: made, reason, promptTokens } = await running;
            const timings = { queued: 0, firstToken: first, total: performance.now() - start };
            return { text, ids: made, reason, promptTokens, cachedTokens: 0, newTokens: made.length, timings };
          } finally {
            waiting--;
          }
        },
        () => left.abort(),
      );
    },
    async stats(): Promise<ServingStats> {
      const none = { total: 0, used: 0, cached: 0 };
      const adapters = { registered: [...names.keys()], resident: [] };
      return {
        waiting,
        running: 0,
        maxQueue,
        blocks: none,
        cache: { lookedUp: 0, found: 0 },
        preemptions: 0,
        steps: 0,
        adapters,
        tokens: {},
      };
    },
    async addAdapter(name, dir, { replace } = {}) {
      if (replace && names.has(name)) await model.removeAdapter(name);
      await model.addAdapter(name, dir);
      names.set(name, dir);
    },
    async removeAdapter(name) {
      await model.removeAdapter(name);
      names.delete(name);
    },
    async close() {},
    async [Symbol.asyncDispose]() {},
  };
  return serving;
}

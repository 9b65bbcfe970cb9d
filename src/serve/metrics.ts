import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { GenerationEnd } from '../generate/index.ts';
import type { ServingStats } from '../session/index.ts';

const seconds = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120];

/** What a server counts, in Prometheus' text format. */
export class Metrics {
  readonly #registry = new Registry();
  readonly #requests: Counter<'route' | 'status'>;
  readonly #answers: Counter<'model' | 'reason'>;
  readonly #promptTokens: Counter<'model'>;
  readonly #cachedTokens: Counter<'model'>;
  readonly #newTokens: Counter<'model'>;
  readonly #queued: Histogram;
  readonly #firstToken: Histogram<'model'>;
  readonly #perToken: Histogram;
  readonly #total: Histogram;
  readonly #refresh: () => Promise<void>;

  /** @param stats what is asked of the engine when the metrics are read; undefined where it does not answer */
  constructor(stats: () => Promise<ServingStats | undefined>, adapters: () => number) {
    const registers = [this.#registry];
    const model = ['model'] as const;
    const counter = <L extends string>(name: string, help: string, labelNames: readonly L[]) =>
      new Counter<L>({ name, help, labelNames: [...labelNames], registers });
    // One with a label is large where there are a thousand adapters.
    const histogram = <L extends string>(name: string, help: string, labelNames: readonly L[] = []) =>
      new Histogram<L>({ name, help, labelNames: [...labelNames], buckets: seconds, registers });
    this.#requests = counter('graft_requests_total', 'Requests by route and status.', ['route', 'status']);
    this.#answers = counter('graft_answers_total', 'Answers by model and why they ended.', ['model', 'reason']);
    this.#promptTokens = counter('graft_prompt_tokens_total', 'Tokens of prompts.', model);
    this.#cachedTokens = counter('graft_cached_tokens_total', 'Tokens of prompts that were in the cache.', model);
    this.#newTokens = counter('graft_generated_tokens_total', 'Tokens that were generated.', model);
    this.#queued = histogram('graft_queue_seconds', 'Time until the first pass.');
    this.#firstToken = histogram('graft_time_to_first_token_seconds', 'Time until the first token.', model);
    this.#perToken = histogram('graft_time_per_token_seconds', 'Time for each token after the first.');
    this.#total = histogram('graft_answer_seconds', 'Time until the whole answer.');
    const gauges = {
      graft_queue_length: ['Requests that wait for their first pass.', (s: ServingStats) => s.waiting],
      graft_running: ['Answers that are being generated.', (s: ServingStats) => s.running],
      graft_kv_blocks: ['Blocks of keys and values there are.', (s: ServingStats) => s.blocks.total],
      graft_kv_blocks_used: ['Blocks that answers hold.', (s: ServingStats) => s.blocks.used],
      graft_kv_blocks_cached: ['Blocks that are kept for prompts to come.', (s: ServingStats) => s.blocks.cached],
      graft_cache_looked_up_tokens: ['Tokens of prompts that were looked up.', (s: ServingStats) => s.cache.lookedUp],
      graft_cache_found_tokens: ['Tokens of prompts that were found.', (s: ServingStats) => s.cache.found],
      graft_preemptions: [
        'Answers that lost their blocks and were computed again.',
        (s: ServingStats) => s.preemptions,
      ],
      graft_steps: ['Passes of the model.', (s: ServingStats) => s.steps],
      graft_adapters_resident: ['Adapters in memory.', (s: ServingStats) => s.adapters.resident.length],
      graft_adapter_bytes: ['Bytes that they take.', (s: ServingStats) => s.adapters.bytes],
      graft_tensors: ['Tensors that are alive.', (s: ServingStats) => s.tensors],
    } as const;
    const all = Object.entries(gauges).map(([name, [help, value]]) => ({
      gauge: new Gauge({ name, help, registers }),
      value,
    }));
    const count = new Gauge({ name: 'graft_adapters', help: 'Adapters that requests can name.', registers });
    this.#refresh = async () => {
      count.set(adapters());
      const now = await stats();
      if (now) for (const { gauge, value } of all) gauge.set(value(now));
    };
  }

  requested(route: string, status: number): void {
    this.#requests.inc({ route, status });
  }

  answered(model: string, { reason, promptTokens, cachedTokens, newTokens, timings }: GenerationEnd): void {
    this.#answers.inc({ model, reason });
    this.#promptTokens.inc({ model }, promptTokens);
    this.#cachedTokens.inc({ model }, cachedTokens);
    this.#newTokens.inc({ model }, newTokens);
    this.#queued.observe(timings.queued / 1000);
    this.#total.observe(timings.total / 1000);
    if (timings.firstToken === 0) return;
    this.#firstToken.observe({ model }, timings.firstToken / 1000);
    if (newTokens > 1) this.#perToken.observe((timings.total - timings.firstToken) / 1000 / (newTokens - 1));
  }

  /** Forgets the series of a model that is no longer there. */
  forget(model: string): void {
    for (const metric of [this.#promptTokens, this.#cachedTokens, this.#newTokens, this.#firstToken])
      metric.remove({ model });
    for (const reason of ['eos', 'length', 'stop', 'interrupted', 'deadline']) this.#answers.remove({ model, reason });
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  async text(): Promise<string> {
    await this.#refresh();
    return this.#registry.metrics();
  }
}

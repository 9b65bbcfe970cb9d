import type { Arrival } from './plan.ts';

/** What became of one request. */
export interface LoadResult {
  readonly model: string;
  /** Of the answer; 0 where there was none. */
  readonly status: number;
  /** The code of the error, or its message. */
  readonly error: string | undefined;
  /** Seconds from when it was due until the first text. */
  readonly firstToken: number | undefined;
  /** Seconds between two tokens, on average. */
  readonly betweenTokens: number | undefined;
  /** Seconds from when it was due until the end. */
  readonly total: number;
  readonly promptTokens: number;
  readonly newTokens: number;
}

/** Where the load goes. */
export interface LoadTarget {
  /** Without /v1. */
  readonly url: string;
  readonly apiKey?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

const headersOf = ({ apiKey }: LoadTarget) => ({
  'content-type': 'application/json',
  ...(apiKey !== undefined && { authorization: `Bearer ${apiKey}` }),
});

/** Sends each request when it is due, whether or not earlier ones are answered: an open loop. @returns one result for each */
export function runLoad(target: LoadTarget, load: readonly Arrival[]): Promise<LoadResult[]> {
  const start = performance.now();
  return Promise.all(
    load.map(async (arrival) => {
      const due = start + arrival.at * 1000;
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, due - performance.now())));
      return ask(target, arrival, due);
    }),
  );
}

interface Chunk {
  readonly choices: readonly { readonly text: string }[];
  readonly usage?: { readonly prompt_tokens: number; readonly completion_tokens: number } | null;
  readonly error?: { readonly message: string; readonly code: string | null };
}

async function ask(target: LoadTarget, { model, prompt, maxTokens }: Arrival, due: number): Promise<LoadResult> {
  const since = () => (performance.now() - due) / 1000;
  let [status, firstToken, lastToken, promptTokens, newTokens]: [number, number | undefined, number, number, number] = [
    0,
    undefined,
    0,
    0,
    0,
  ];
  let error: string | undefined;
  try {
    const body = {
      model,
      prompt,
      max_tokens: maxTokens,
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true },
    };
    const { signal = null } = target;
    const response = await fetch(`${target.url}/v1/completions`, {
      method: 'POST',
      headers: headersOf(target),
      body: JSON.stringify(body),
      signal,
    });
    status = response.status;
    if (!response.ok) error = ((await response.json()) as Chunk).error?.code ?? `status ${status}`;
    else
      for await (const chunk of chunksOf(response)) {
        if (chunk.error) error = chunk.error.code ?? chunk.error.message;
        if (chunk.usage) [promptTokens, newTokens] = [chunk.usage.prompt_tokens, chunk.usage.completion_tokens];
        else if (chunk.choices?.length > 0) {
          lastToken = since();
          firstToken ??= lastToken;
        }
      }
  } catch (cause) {
    error = (cause as Error).message;
  }
  const betweenTokens =
    firstToken !== undefined && newTokens > 1 ? (lastToken - firstToken) / (newTokens - 1) : undefined;
  return { model, status, error, firstToken, betweenTokens, total: since(), promptTokens, newTokens };
}

/** The events of a stream as JSON. */
async function* chunksOf(response: Response): AsyncGenerator<Chunk> {
  let text = '';
  const decoder = new TextDecoder();
  for await (const bytes of response.body!) {
    text += decoder.decode(bytes as Uint8Array, { stream: true });
    const events = text.split('\n\n');
    text = events.pop()!;
    for (const event of events) if (event.startsWith('data: {')) yield JSON.parse(event.slice(6)) as Chunk;
  }
}

/** Names of the models that a server has; the base first. @throws Error where it does not answer */
export async function modelsOf(target: LoadTarget): Promise<string[]> {
  const response = await fetch(`${target.url}/v1/models`, { headers: headersOf(target) });
  if (!response.ok) throw new Error(`GET /v1/models: status ${response.status}`);
  return ((await response.json()) as { data: { id: string; task?: string }[] }).data
    .filter(({ task = 'causal-lm' }) => task === 'causal-lm')
    .map(({ id }) => id);
}

import { createHash, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { fileError, GraftError } from '../base/index.ts';
import { RequestError } from './errors.ts';
import type { Limits } from './limits.ts';

const digestOf = (text: string): Buffer => createHash('sha256').update(text).digest();

/** The keys of a file: one a line, empty lines and lines that begin with # left out. */
export function readKeys(file: string): string[] {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw fileError(error, file, 'read');
  }
  const keys = text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
  if (keys.length > 0) return keys;
  throw new GraftError('input', 'the file has no API key', { place: file, hint: 'Write one key in each line' });
}

/** Checks the API keys themselves. @throws GraftError 'usage' for one that is easily guessed, or that no header can carry */
export function checkKeys(keys: readonly string[]): void {
  const bad = keys.findIndex((key) => !/^[\x21-\x7e]{16,512}$/.test(key));
  if (bad < 0) return;
  throw new GraftError('usage', `API key ${bad + 1} must have 16 to 512 characters of ASCII, without spaces`, {
    place: 'apiKeys',
    hint: 'Make one with: openssl rand -hex 32',
  });
}

/** What one key has asked for. */
interface KeyState {
  running: number;
  /** Requests that it may send at this moment, where there is a rate. */
  allowance: number;
  at: number;
}

/** Who may ask, and how much at a time. Without keys everybody may, as one. */
export class Keys {
  readonly #digests: readonly Buffer[];
  readonly #limits: Limits;
  readonly #states = new Map<string, KeyState>();

  constructor(keys: readonly string[], limits: Limits) {
    checkKeys(keys);
    this.#digests = keys.map(digestOf);
    this.#limits = limits;
  }

  get required(): boolean {
    return this.#digests.length > 0;
  }

  /** @returns a name for the key of a request, which is not the key; undefined where no keys are used. @throws RequestError 401 */
  identify(authorization: string | undefined): string | undefined {
    if (!this.required) return undefined;
    const [, key] = /^Bearer (\S+)$/i.exec(authorization ?? '') ?? [];
    const digest = digestOf(key ?? '');
    // All are compared, so that the time does not tell which one was like it.
    let found = -1;
    for (const [i, known] of this.#digests.entries()) if (timingSafeEqual(known, digest)) found = i;
    if (key !== undefined && found >= 0) return `key ${found + 1}`;
    const problem =
      key === undefined ? 'An API key is required: send it as Authorization: Bearer KEY.' : 'The API key is wrong.';
    throw new RequestError(401, problem, { code: key === undefined ? 'missing_api_key' : 'invalid_api_key' });
  }

  /** Begins a request of a key. @returns a function that ends it. @throws RequestError 429 where the key asks for too much */
  enter(id: string | undefined): () => void {
    const { requestsPerKey, requestsPerMinute } = this.#limits;
    const now = performance.now();
    const state = this.#states.get(id ?? '') ?? { running: 0, allowance: requestsPerMinute, at: now };
    this.#states.set(id ?? '', state);
    if (state.running >= requestsPerKey) {
      const problem = `${requestsPerKey} requests run already, which is the most at a time.`;
      throw new RequestError(429, problem, { code: 'rate_limit_exceeded', retryAfter: 1 });
    }
    if (requestsPerMinute > 0) {
      const earned = ((now - state.at) / 60_000) * requestsPerMinute;
      state.allowance = Math.min(requestsPerMinute, state.allowance + earned);
      state.at = now;
      if (state.allowance < 1) {
        const retryAfter = Math.ceil(((1 - state.allowance) / requestsPerMinute) * 60);
        const problem = `${requestsPerMinute} requests a minute are the most.`;
        throw new RequestError(429, problem, { code: 'rate_limit_exceeded', retryAfter });
      }
      state.allowance--;
    }
    state.running++;
    let ended = false;
    return () => {
      if (!ended) state.running--;
      ended = true;
    };
  }
}

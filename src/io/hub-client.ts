import { createHash, type Hash } from 'node:crypto';
import { createReadStream, createWriteStream, renameSync, rmSync, statSync } from 'node:fs';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { ReadableStream } from 'node:stream/web';
import { setTimeout as wait } from 'node:timers/promises';
import type { ListFileEntry } from '@huggingface/hub';
import { fileError, GraftError } from '../base/index.ts';

type Library = typeof import('@huggingface/hub');

/** How often a broken connection is taken up again for one file while nothing new arrives. */
const TRIES = 4;

/** One repository on the hub, through @huggingface/hub, with errors that say what to do. */
export class HubClient {
  readonly repo: string;
  readonly #library: Library;
  readonly #options: { hubUrl: string; accessToken?: string; fetch: typeof fetch };
  /** The last refusal: the library's streams pass on only its text. */
  #failure: unknown;

  private constructor(library: Library, repo: string, hubUrl: string, accessToken: string | undefined) {
    this.#library = library;
    this.repo = repo;
    this.#options = {
      hubUrl,
      ...(accessToken && { accessToken }),
      fetch: async (input, init) => {
        try {
          const response = await fetch(input, init);
          if (response.ok) return response;
          await response.body?.cancel();
          throw this.#refused(response.status);
        } catch (error) {
          this.#failure = this.#explain(error);
          throw this.#failure;
        }
      },
    };
  }

  static async connect(repo: string, endpoint: string | undefined, token: string | undefined): Promise<HubClient> {
    const accessToken = token ?? process.env.HF_TOKEN;
    if (accessToken && !accessToken.startsWith('hf_'))
      throw new GraftError('usage', 'The token for the hub does not start with hf_', {
        hint: 'Correct or unset HF_TOKEN',
      });
    if (/^(1|true|yes|on)$/i.test(process.env.HF_HUB_OFFLINE ?? ''))
      throw new GraftError(
        'environment',
        'There is no complete copy in the cache, and HF_HUB_OFFLINE forbids the network',
        {
          place: repo,
          hint: 'Unset it once',
        },
      );
    const url = endpoint ?? process.env.HF_ENDPOINT ?? 'https://huggingface.co';
    return new HubClient(await import('@huggingface/hub'), repo, url.replace(/\/+$/, ''), accessToken);
  }

  /** The commit that a branch, tag or commit name stands for now. */
  async commit(revision: string): Promise<string> {
    return this.#ask(async () => {
      const name = this.repo;
      const { sha } = await this.#library.modelInfo({ ...this.#options, name, revision, additionalFields: ['sha'] });
      if (!/^[0-9a-f]{40}$/.test(sha)) throw new Error('no commit');
      return sha;
    });
  }

  async list(commit: string): Promise<ListFileEntry[]> {
    return this.#ask(async () => {
      const all = this.#library.listFiles({ ...this.#options, repo: this.repo, revision: commit, recursive: true });
      const files: ListFileEntry[] = [];
      for await (const entry of all)
        if (entry.type === 'file' && !entry.path.split('/').includes('..')) files.push(entry);
      return files;
    });
  }

  /**
   * Fetches a file to `target`: first as `target.part`, from where an earlier attempt stopped, and renamed when its size
   * and hash are the hub's.
   * @param arrived is told the bytes that are here so far
   */
  async fetch(file: ListFileEntry, commit: string, target: string, arrived: (bytes: number) => void): Promise<void> {
    const part = `${target}.part`;
    const place = `${this.repo}/${file.path}`;
    for (let failures = 0; ; ) {
      const check = expectedHash(file);
      let have = statSync(part, { throwIfNoEntry: false })?.size ?? 0;
      if (have > file.size) have = 0;
      else if (have > 0) for await (const piece of createReadStream(part)) check?.hash.update(piece);
      const before = have;
      const count = async function* (pieces: AsyncIterable<Uint8Array>) {
        for await (const piece of pieces) {
          have += piece.byteLength;
          check?.hash.update(piece);
          arrived(have);
          yield piece;
        }
      };
      let failure: unknown;
      this.#failure = undefined;
      try {
        const source = have === file.size ? Readable.from([]) : await this.#stream(file.path, commit, have);
        await pipeline(source, count, createWriteStream(part, { flags: have > 0 ? 'a' : 'w', flush: true }));
      } catch (error) {
        failure = fileError(this.#failure ?? this.#explain(error), part, 'written');
        if (!(failure instanceof GraftError && failure.data.again === true)) throw failure;
      }
      if (!failure && have >= file.size) {
        const got = check?.hash.digest('hex');
        if (have === file.size && got === check?.expected) return renameSync(part, target);
        rmSync(part);
        const what =
          have === file.size
            ? `the ${check?.name} hash ${got} instead of ${check?.expected}`
            : `${have} bytes instead of ${file.size}`;
        throw new GraftError('input', `What the hub sent has ${what}`, {
          place,
          hint: 'Run it again: the wrong copy was deleted',
        });
      }
      failures = have > before ? 1 : failures + 1;
      if (failures >= TRIES)
        throw (
          failure ??
          new GraftError('environment', `The hub stopped at byte ${have} of ${file.size}`, {
            place,
            hint: 'Run it again: it goes on from there',
          })
        );
      await wait(100 * 2 ** failures);
    }
  }

  #stream(path: string, revision: string, from: number): Promise<Readable> {
    return this.#ask(async () => {
      const blob = await this.#library.downloadFile({ ...this.#options, repo: this.repo, path, revision, xet: false });
      if (!blob) throw this.#refused(404);
      return Readable.fromWeb((from > 0 ? blob.slice(from) : blob).stream() as ReadableStream);
    });
  }

  /** Runs a call of the library; what it makes of an answer that it does not understand becomes a clear error. */
  async #ask<T>(call: () => Promise<T>): Promise<T> {
    try {
      return await call();
    } catch (error) {
      if (error instanceof GraftError) throw error;
      const problem = `${this.#options.hubUrl} did not answer as a Hugging Face hub does: ${(error as Error).message}`;
      throw new GraftError('environment', problem, { place: this.repo, hint: 'Check HF_ENDPOINT', cause: error });
    }
  }

  #refused(status: number): GraftError {
    const [problem, hint] =
      status === 401 || status === 403
        ? [
            this.#options.accessToken
              ? 'The hub does not let this HF_TOKEN read the model'
              : 'The hub asks who you are: the model is private, gated, or does not exist',
            `Check the name, accept its terms at ${this.#options.hubUrl}/${this.repo} and set HF_TOKEN`,
          ]
        : status === 404
          ? ['The hub has no such model, revision or file', 'Check the name']
          : status === 429
            ? ['The hub says that it was asked too often', 'Wait some minutes, or set HF_TOKEN']
            : [`The hub answered with status ${status}`, 'Try again later'];
    return new GraftError('environment', problem, {
      place: this.repo,
      hint,
      data: { status, again: status === 429 || status >= 500 },
    });
  }

  /** A failure of the connection as an error with its hint; a GraftError, a file error and a bug stay what they are. */
  #explain(error: unknown): unknown {
    const { cause = error, code: own, syscall } = Object(error) as NodeJS.ErrnoException;
    const isNetwork = typeof error === 'string' || cause !== error || own !== undefined;
    if (error instanceof GraftError || !isNetwork || /^(open|write|fsync|close)$/.test(syscall ?? '')) return error;
    const code = (cause as NodeJS.ErrnoException).code ?? (cause as Error).message ?? String(error);
    const proxy = (process.env.HTTPS_PROXY ?? process.env.https_proxy) && !process.env.NODE_USE_ENV_PROXY;
    const [problem, hint] = /CERT|SELF_SIGNED/.test(code)
      ? [
          `The certificate of ${this.#options.hubUrl} is not trusted: ${code}`,
          "Name your network's certificate in NODE_EXTRA_CA_CERTS",
        ]
      : [
          `${this.#options.hubUrl} could not be reached: ${code}`,
          proxy
            ? 'Set NODE_USE_ENV_PROXY=1, so that HTTPS_PROXY is used'
            : 'Connect to the network and run it again, or name a local directory or .gguf file',
        ];
    return new GraftError('environment', problem, {
      place: this.repo,
      hint,
      data: { code, again: true },
      cause: error,
    });
  }
}

/** The hub names big files by the SHA-256 of their contents and small ones by git's blob id. */
function expectedHash({ lfs, oid, size }: ListFileEntry): { hash: Hash; expected: string; name: string } | undefined {
  if (lfs) return { hash: createHash('sha256'), expected: lfs.oid.replace(/^sha256:/, ''), name: 'SHA-256' };
  return oid ? { hash: createHash('sha1').update(`blob ${size}\0`), expected: oid, name: 'git' } : undefined;
}

import { createHash, type Hash } from 'node:crypto';
import { createReadStream, createWriteStream, renameSync, rmSync, statSync } from 'node:fs';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { ReadableStream } from 'node:stream/web';
import { setTimeout as wait } from 'node:timers/promises';
import { fileError, GraftError } from '../base/index.ts';

type Library = typeof import('@huggingface/hub');

/** Attempts to download a file before it fails, counted from the last one that received anything. */
const TRIES = 4;

/** What a repository on the hub holds. */
export type RepoKind = 'model' | 'dataset';

/** A file of a repository. It is @huggingface/hub's, whose types a user's compiler need not read. */
export interface HubFile {
  readonly path: string;
  readonly size: number;
  readonly oid?: string;
  readonly lfs?: { readonly oid: string };
}

/** A repository on the hub, by @huggingface/hub, with errors that say what to do. */
export class HubClient {
  readonly repo: string;
  readonly kind: RepoKind;
  readonly #library: Library;
  readonly #options: { hubUrl: string; accessToken?: string; fetch: typeof fetch };
  /** The last error of `fetch`: the library's streams pass on only its message. */
  #failure: unknown;

  private constructor(library: Library, repo: string, kind: RepoKind, hubUrl: string, accessToken: string | undefined) {
    this.#library = library;
    this.repo = repo;
    this.kind = kind;
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

  static async connect(
    repo: string,
    { endpoint, token, kind = 'model' }: { endpoint?: string | undefined; token?: string | undefined; kind?: RepoKind },
  ): Promise<HubClient> {
    const accessToken = token || process.env.HF_TOKEN;
    if (accessToken && !accessToken.startsWith('hf_'))
      throw new GraftError('usage', 'The token for the hub does not start with hf_', {
        hint: 'Correct or unset HF_TOKEN',
      });
    if (/^(1|true|yes|on)$/i.test(process.env.HF_HUB_OFFLINE ?? ''))
      throw new GraftError('environment', 'The cache has no complete copy, and HF_HUB_OFFLINE turns the network off', {
        place: repo,
        hint: `Unset HF_HUB_OFFLINE to download the ${kind}`,
      });
    const url = endpoint || process.env.HF_ENDPOINT || 'https://huggingface.co';
    return new HubClient(await import('@huggingface/hub'), repo, kind, url.replace(/\/+$/, ''), accessToken);
  }

  /** Returns the commit that a branch, tag or commit name refers to now. */
  async commit(revision: string): Promise<string> {
    return this.#call(async () => {
      const name = this.repo;
      const { modelInfo, datasetInfo } = this.#library;
      const { sha } =
        this.kind === 'dataset'
          ? await datasetInfo({ ...this.#options, name, revision, additionalFields: ['sha'] })
          : await modelInfo({ ...this.#options, name, revision, additionalFields: ['sha'] });
      if (!/^[0-9a-f]{40}$/.test(sha)) throw new Error('the answer has no commit');
      return sha;
    });
  }

  get #designation() {
    return { type: this.kind, name: this.repo } as const;
  }

  /** Returns the files of the repository. */
  async list(commit: string): Promise<HubFile[]> {
    return this.#call(async () => {
      const all = this.#library.listFiles({
        ...this.#options,
        repo: this.#designation,
        revision: commit,
        recursive: true,
      });
      const files: HubFile[] = [];
      for await (const entry of all)
        if (entry.type === 'file' && !entry.path.split('/').includes('..')) files.push(entry);
      return files;
    });
  }

  /**
   * Downloads a file to `target`: first to `target.part`, resuming after an earlier attempt, then renamed, if its size and
   * hash are the hub's.
   * @param onReceived called with the bytes received so far
   */
  async fetch(file: HubFile, commit: string, target: string, onReceived: (bytes: number) => void): Promise<void> {
    const part = `${target}.part`;
    const place = `${this.repo}/${file.path}`;
    for (let failures = 0; ; ) {
      const check = expectedHash(file);
      let received = statSync(part, { throwIfNoEntry: false })?.size ?? 0;
      if (received > file.size) received = 0;
      else if (received > 0) for await (const piece of createReadStream(part)) check?.hash.update(piece);
      const receivedBefore = received;
      const count = async function* (pieces: AsyncIterable<Uint8Array>) {
        for await (const piece of pieces) {
          received += piece.byteLength;
          check?.hash.update(piece);
          onReceived(received);
          yield piece;
        }
      };
      let failure: unknown;
      this.#failure = undefined;
      try {
        const source = received === file.size ? Readable.from([]) : await this.#stream(file.path, commit, received);
        await pipeline(source, count, createWriteStream(part, { flags: received > 0 ? 'a' : 'w', flush: true }));
      } catch (error) {
        failure = fileError(this.#failure ?? this.#explain(error), part, 'written');
        if (!(failure instanceof GraftError && failure.data.again === true)) throw failure;
      }
      if (!failure && received >= file.size) {
        const hash = check?.hash.digest('hex');
        if (received === file.size && hash === check?.expected) return renameSync(part, target);
        rmSync(part);
        const difference =
          received === file.size
            ? `the ${check?.name} hash ${hash} instead of ${check?.expected}`
            : `${received} bytes instead of ${file.size}`;
        throw new GraftError('input', `The downloaded file has ${difference}`, {
          place,
          hint: 'Run the command again: the wrong file was deleted',
        });
      }
      failures = received > receivedBefore ? 1 : failures + 1;
      if (failures >= TRIES)
        throw (
          failure ??
          new GraftError('environment', `The download stopped at byte ${received} of ${file.size}`, {
            place,
            hint: 'Run the command again: the download resumes there',
          })
        );
      await wait(100 * 2 ** failures);
    }
  }

  #stream(path: string, revision: string, from: number): Promise<Readable> {
    return this.#call(async () => {
      const blob = await this.#library.downloadFile({
        ...this.#options,
        repo: this.#designation,
        path,
        revision,
        xet: false,
      });
      if (!blob) throw this.#refused(404);
      return Readable.fromWeb((from > 0 ? blob.slice(from) : blob).stream() as ReadableStream);
    });
  }

  /** Calls the library; an answer that it does not understand becomes a clear error. */
  async #call<T>(call: () => Promise<T>): Promise<T> {
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
              ? `The HF_TOKEN has no access to the ${this.kind}`
              : `The hub requires authentication: the ${this.kind} is private, gated, or does not exist`,
            `Check the name, accept its terms at ${this.#options.hubUrl}/${this.kind === 'dataset' ? 'datasets/' : ''}${this.repo} and set HF_TOKEN`,
          ]
        : status === 404
          ? [`The ${this.kind}, revision or file was not found on the hub`, 'Check the name']
          : status === 429
            ? ['The rate limit of the hub was reached', 'Wait some minutes, or set HF_TOKEN']
            : [`The hub answered with status ${status}`, 'Try again later'];
    return new GraftError('environment', problem, {
      place: this.repo,
      hint,
      data: { status, again: status === 429 || status >= 500 },
    });
  }

  /** Returns a connection error as a GraftError with a hint, and every other error as it is. */
  #explain(error: unknown): unknown {
    const { cause = error, code: errorCode, syscall } = Object(error) as NodeJS.ErrnoException;
    const isNetwork = typeof error === 'string' || cause !== error || errorCode !== undefined;
    if (error instanceof GraftError || !isNetwork || /^(open|write|fsync|close)$/.test(syscall ?? '')) return error;
    const code = (cause as NodeJS.ErrnoException).code ?? (cause as Error).message ?? String(error);
    const proxy = (process.env.HTTPS_PROXY ?? process.env.https_proxy) && !process.env.NODE_USE_ENV_PROXY;
    const [problem, hint] = /CERT|SELF_SIGNED/.test(code)
      ? [
          `The certificate of ${this.#options.hubUrl} is not trusted: ${code}`,
          "Set NODE_EXTRA_CA_CERTS to the file of your network's certificate",
        ]
      : [
          `${this.#options.hubUrl} could not be reached: ${code}`,
          proxy
            ? 'Set NODE_USE_ENV_PROXY=1, so that HTTPS_PROXY is used'
            : 'Connect to the network and run the command again, or give the path of a local directory or .gguf file',
        ];
    return new GraftError('environment', problem, {
      place: this.repo,
      hint,
      data: { code, again: true },
      cause: error,
    });
  }
}

/** Returns the hash that the hub lists for a file: the SHA-256 of large files, git's blob id of small ones. */
function expectedHash({ lfs, oid, size }: HubFile): { hash: Hash; expected: string; name: string } | undefined {
  if (lfs) return { hash: createHash('sha256'), expected: lfs.oid.replace(/^sha256:/, ''), name: 'SHA-256' };
  return oid ? { hash: createHash('sha1').update(`blob ${size}\0`), expected: oid, name: 'git' } : undefined;
}

import { existsSync, readFileSync, statfsSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import type { ListFileEntry } from '@huggingface/hub';
import { cacheDir, fileError, GraftError, makeDirectory, nearestPath } from '../base/index.ts';
import { writeFile } from './directory.ts';
import { HubClient } from './hub-client.ts';
import { lockDirectory } from './lock.ts';

export interface DownloadProgress {
  /** The file now being fetched. */
  readonly file: string;
  /** Bytes of all files of this model that are here, and of all that are needed. */
  readonly received: number;
  readonly total: number;
}

export interface ResolveOptions {
  readonly progress?: (progress: DownloadProgress) => void;
  /** Asks the hub for the newest state of the revision, although a complete copy of an earlier one is here. */
  readonly refresh?: boolean;
  /** Default: `HF_ENDPOINT`, else https://huggingface.co. */
  readonly endpoint?: string;
  /** For private and gated models. Default: `HF_TOKEN`. */
  readonly token?: string;
}

interface Spec {
  readonly repo: string;
  readonly revision: string;
  /** The GGUF file in the repository that was asked for; without it, the Hugging Face directory. */
  readonly file: string | undefined;
}

const SPEC = /^(?<repo>[\w][\w.-]*\/[\w][\w.-]*)(?:@(?<revision>[^\s]+?))?(?:\/(?<file>[^@\s]+\.gguf))?$/;

/**
 * Finds a model: a directory or `.gguf` file is itself; a hub id (`org/name`, `org/name@revision`, `org/name/file.gguf`,
 * `org/name@revision/file.gguf`) is fetched into the user's cache, once. A complete copy there is used without asking
 * the network. Fetching continues where it was broken off; every file is checked against the hub's size and hash before
 * it gets its name, so what is in the cache is whole.
 * @returns a local directory (config, tokenizer, safetensors) or `.gguf` file
 * @throws GraftError `usage` for a spec that is neither; `environment` for no network, no rights, a full disk; `input`
 *   for a repository without weights that Graft reads, or a file that does not have the hub's hash
 */
export async function resolveModel(spec: string, options: ResolveOptions = {}): Promise<string> {
  const here = resolve(spec);
  const stat = statSync(here, { throwIfNoEntry: false });
  if (stat?.isDirectory() || (stat?.isFile() && here.endsWith('.gguf'))) return here;
  if (stat)
    throw new GraftError('usage', 'This file is not a model', {
      place: spec,
      hint: 'Name a directory or a .gguf file',
    });
  const near = nearestPath(spec);
  const groups = SPEC.exec(spec)?.groups;
  if (!groups?.repo || spec.split(/[/@]/).includes('..'))
    throw new GraftError('usage', 'There is no such directory or .gguf file, and this is not a hub id', {
      place: spec,
      hint: near
        ? `Did you mean ${near}?`
        : 'Check the path, or write a hub id as org/name, org/name@revision or org/name/file.gguf',
    });
  const wanted: Spec = { repo: groups.repo, revision: groups.revision ?? 'main', file: groups.file };
  const home = cacheDir('hub', wanted.repo.replace('/', '--'));
  const cached = findComplete(home, wanted);
  if (cached && !options.refresh) return cached;
  const hub = await HubClient.connect(wanted.repo, options.endpoint, options.token);
  const commit = await hub.commit(wanted.revision);
  const files = selectFiles(await hub.list(commit), wanted);
  const snapshot = join(home, commit);
  const note = (path: string, text: string) => writeFile(path, (write) => write(Buffer.from(text)));
  try {
    using _lock = await lockPatiently(snapshot);
    await fetchAll(hub, snapshot, commit, files, options.progress);
    note(
      join(snapshot, '.complete', encodeURIComponent(wanted.file ?? 'directory')),
      files.map(({ path }) => path).join('\n'),
    );
    note(join(home, 'refs', encodeURIComponent(wanted.revision)), commit);
  } catch (error) {
    throw fileError(error, snapshot, 'written');
  }
  return wanted.file ? join(snapshot, wanted.file) : snapshot;
}

/** The complete copy of this revision in the cache. */
function findComplete(home: string, { revision, file }: Spec): string | undefined {
  try {
    const ref = join(home, 'refs', encodeURIComponent(revision));
    const commit = existsSync(ref) ? readFileSync(ref, 'utf8') : revision;
    const names = readFileSync(join(home, commit, '.complete', encodeURIComponent(file ?? 'directory')), 'utf8')
      .trim()
      .split('\n');
    if (!names.every((name) => existsSync(join(home, commit, name)))) return undefined;
    return file ? join(home, commit, file) : join(home, commit);
  } catch {
    return undefined;
  }
}

/** Small files of a Hugging Face directory that say what the model is, how it speaks, sees or pools, and how it may be used. */
const SMALL =
  /^(config|generation_config|adapter_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|preprocessor_config|chat_template|modules|config_sentence_transformers|sentence_bert_config)\.json$|^\d_Pooling\/config\.json$|^(merges|vocab)\.txt$|\.jinja$|^tokenizer\.model$|^(LICENSE|LICENCE|NOTICE|USE_POLICY)/i;
const SHARD = /-\d{5}-of-(\d{5})\.gguf$/;

function selectFiles(all: readonly ListFileEntry[], { repo, file }: Spec): ListFileEntry[] {
  const pick = (test: (path: string) => boolean) => all.filter(({ path }) => test(path));
  const some = (files: readonly ListFileEntry[]) =>
    files
      .slice(0, 5)
      .map(({ path }) => path)
      .join(', ') || 'none';
  const ggufs = pick((path) => path.endsWith('.gguf'));
  if (file) {
    const shards = SHARD.exec(file);
    const names = shards
      ? Array.from({ length: Number(shards[1]) }, (_, i) =>
          file.replace(SHARD, `-${String(i + 1).padStart(5, '0')}-of-${shards[1]}.gguf`),
        )
      : [file];
    const found = pick((path) => names.includes(path));
    if (found.length === names.length) return found;
    throw new GraftError(
      'usage',
      `The repository has no file ${names.find((name) => !found.some(({ path }) => path === name))}`,
      { place: repo, hint: `Its GGUF files: ${some(ggufs)}` },
    );
  }
  const named = (name: string) => pick((path) => path === name);
  const index = named('model.safetensors.index.json');
  const weights = [
    named('model.safetensors'),
    [...index, ...(index.length > 0 ? pick((path) => /^model-\d{5}-of-\d{5}\.safetensors$/.test(path)) : [])],
    named('adapter_model.safetensors'),
    pick((path) => /^[^/]+\.safetensors(\.index\.json)?$/.test(path)),
  ].find((files) => files.length > 0);
  if (weights) return [...pick((path) => SMALL.test(path)), ...weights];
  throw new GraftError('input', 'The repository has no safetensors weights', {
    place: repo,
    hint:
      ggufs.length > 0
        ? `Name one of its GGUF files, such as ${repo}/${ggufs[0]!.path}`
        : 'Choose a repository with safetensors or GGUF',
  });
}

/** Waits for another call or process that is fetching the same model. */
async function lockPatiently(directory: string): Promise<Disposable> {
  for (;;) {
    try {
      return lockDirectory(directory);
    } catch (error) {
      const owner = error instanceof GraftError && error.kind === 'state' ? error.data : {};
      if (typeof owner.pid !== 'number') throw error;
      await wait(250);
    }
  }
}

async function fetchAll(
  hub: HubClient,
  snapshot: string,
  commit: string,
  files: readonly ListFileEntry[],
  progress: ResolveOptions['progress'],
): Promise<void> {
  const sum = (some: readonly ListFileEntry[]) => some.reduce((bytes, { size }) => bytes + size, 0);
  const isHere = ({ path }: ListFileEntry) => existsSync(join(snapshot, path)); // checked before it got this name
  const absent = files.filter((file) => !isHere(file));
  const { bavail, bsize } = statfsSync(snapshot);
  if (sum(absent) > bavail * bsize)
    throw new GraftError(
      'environment',
      `The model needs ${mb(sum(absent))}, and the disk has ${mb(bavail * bsize)} free`,
      {
        place: snapshot,
        hint: 'Free some space, or point GRAFT_CACHE to another disk',
      },
    );
  const total = sum(files);
  let received = sum(files.filter(isHere));
  for (const file of absent) {
    const target = join(snapshot, file.path);
    makeDirectory(dirname(target));
    await hub.fetch(file, commit, target, (bytes) =>
      progress?.({ file: file.path, received: received + bytes, total }),
    );
    received += file.size;
  }
}

const mb = (bytes: number) => `${Math.ceil(bytes / 1e6)} MB`;

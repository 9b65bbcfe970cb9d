import { existsSync, readFileSync, statfsSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { cacheDir, fileError, GraftError, makeDirectory, nearestPath, waitForLock } from '../base/index.ts';
import { writeText } from './directory.ts';
import { HubClient, type HubFile } from './hub-client.ts';
import { readJsonObject } from './jsonfile.ts';
import { requireFamily, requireReadableWeights } from './model-config.ts';

/** How far a download is. */
export interface DownloadProgress {
  /** The file that is being downloaded. */
  readonly file: string;
  /** Bytes received so far, of all files of the model. */
  readonly received: number;
  /** Bytes of all files of the model. */
  readonly total: number;
}

/** Options of `resolveModel`. */
export interface ResolveOptions {
  /** Is called while files are downloaded. */
  readonly progress?: (progress: DownloadProgress) => void;
  /** Ask the hub for the newest commit of the revision, also where the cache has a complete copy. */
  readonly refresh?: boolean;
  /** Default: `HF_ENDPOINT`, else https://huggingface.co. */
  readonly endpoint?: string;
  /** For private and gated models. Default: `HF_TOKEN`. */
  readonly token?: string;
}

interface Spec {
  readonly repo: string;
  readonly revision: string;
  /** A GGUF file in the repository; undefined: the Hugging Face directory. */
  readonly file: string | undefined;
}

const SPEC = /^(?<repo>[\w][\w.-]*\/[\w][\w.-]*)(?:@(?<revision>[^\s]+?))?(?:\/(?<file>[^@\s]+\.gguf))?$/;

/**
 * Returns the local path of a model. A directory or `.gguf` file is used as it is; a hub id (`org/name`, `org/name@revision`,
 * `org/name/file.gguf`, `org/name@revision/file.gguf`) is downloaded into the user's cache, unless that has a complete copy.
 * Interrupted downloads resume; every file is checked against the hub's size and hash before it gets its name, so that
 * files in the cache are complete.
 * @returns a local directory (config, tokenizer, safetensors) or `.gguf` file
 * @throws GraftError `usage` for a spec that is neither; `environment` for no network, missing rights, a full disk; `input`
 *   for a repository without weights that Graft reads, or a file with another hash than the hub's
 */
export async function resolveModel(spec: string, options: ResolveOptions = {}): Promise<string> {
  const localPath = resolve(spec);
  const stat = statSync(localPath, { throwIfNoEntry: false });
  if (stat?.isDirectory() || (stat?.isFile() && localPath.endsWith('.gguf'))) return localPath;
  if (stat)
    throw new GraftError('usage', 'This file is not a model', {
      place: spec,
      hint: 'Give the path of a directory or of a .gguf file',
    });
  const near = nearestPath(spec);
  const groups = SPEC.exec(spec)?.groups;
  if (!groups?.repo || spec.split(/[/@]/).includes('..'))
    throw new GraftError(
      'usage',
      'The model was not found: there is no such directory or .gguf file, and this is not a hub id',
      {
        place: spec,
        hint: near
          ? `Did you mean ${near}?`
          : 'Check the path, or write a hub id as org/name, org/name@revision or org/name/file.gguf',
      },
    );
  const parsed: Spec = { repo: groups.repo, revision: groups.revision ?? 'main', file: groups.file };
  const repoDir = cacheDir('hub', parsed.repo.replace('/', '--'));
  const cached = findComplete(repoDir, parsed);
  if (cached && !options.refresh) return cached;
  const hub = await HubClient.connect(parsed.repo, options);
  const commit = await hub.commit(parsed.revision);
  const files = selectFiles(await hub.list(commit), parsed);
  const snapshot = join(repoDir, commit);
  const request = { files, what: parsed.file ?? 'directory', revision: parsed.revision };
  await downloadSnapshot(hub, repoDir, commit, { ...request, progress: options.progress, check: checkConfig });
  return parsed.file ? join(snapshot, parsed.file) : snapshot;
}

/** Refuses a model that Graft does not read, from its config.json, before its weights are fetched. */
function checkConfig(snapshot: string): void {
  const file = join(snapshot, 'config.json');
  if (!existsSync(file)) return;
  const config = readJsonObject(file);
  requireFamily(config, file);
  requireReadableWeights(config, file);
}

/**
 * Downloads files of a commit into `repoDir/commit`, and notes that they are complete there.
 * @param what the name under which the files are complete
 * @param check is called with the directory when its config.json is there, and may throw
 */
export async function downloadSnapshot(
  hub: HubClient,
  repoDir: string,
  commit: string,
  {
    files,
    what,
    revision,
    progress,
    check,
  }: {
    files: readonly HubFile[];
    what: string;
    revision: string;
    progress?: ResolveOptions['progress'];
    check?: (snapshot: string) => void;
  },
): Promise<void> {
  const snapshot = join(repoDir, commit);
  const isFirst = ({ path }: HubFile) => path === 'config.json';
  try {
    using _lock = await waitForLock(snapshot);
    const ordered = [...files.filter(isFirst), ...files.filter((file) => !isFirst(file))];
    await downloadAll(hub, snapshot, commit, ordered, progress, check);
    writeText(join(snapshot, '.complete', encodeURIComponent(what)), files.map(({ path }) => path).join('\n'));
    writeText(join(repoDir, 'refs', encodeURIComponent(revision)), commit);
  } catch (error) {
    throw fileError(error, snapshot, 'written');
  }
}

/** Returns the complete copy of this revision in the cache, if there is one. */
function findComplete(repoDir: string, { revision, file }: Spec): string | undefined {
  const found = completeFiles(repoDir, revision, file ?? 'directory');
  return found && (file ? join(found.snapshot, file) : found.snapshot);
}

/** The files that the cache has completely of a revision, under the name that they were downloaded for. */
export function completeFiles(
  repoDir: string,
  revision: string,
  what: string,
): { snapshot: string; names: string[] } | undefined {
  try {
    const ref = join(repoDir, 'refs', encodeURIComponent(revision));
    const snapshot = join(repoDir, existsSync(ref) ? readFileSync(ref, 'utf8') : revision);
    const names = readFileSync(join(snapshot, '.complete', encodeURIComponent(what)), 'utf8')
      .trim()
      .split('\n');
    return names.every((name) => existsSync(join(snapshot, name))) ? { snapshot, names } : undefined;
  } catch {
    return undefined;
  }
}

/** Files of a Hugging Face directory beside the weights: configs, tokenizer, preprocessing, pooling, licences, the card (for its licence). */
const COMPANIONS =
  /^(config|generation_config|adapter_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|preprocessor_config|chat_template|modules|config_sentence_transformers|sentence_[a-z]+_config)\.json$|^\d_Pooling\/config\.json$|^(merges|vocab)\.txt$|\.jinja$|^(tokenizer|spiece|sentencepiece\.bpe)\.model$|^README\.md$|^(LICENSE|LICENCE|NOTICE|USE_POLICY)/i;
const SHARD = /-\d{5}-of-(\d{5})\.gguf$/;

/**
 * Returns the files of a repository to download.
 * @throws GraftError where it has no weights, or not the GGUF file of `spec`
 */
function selectFiles(all: readonly HubFile[], { repo, file }: Spec): HubFile[] {
  const pick = (test: (path: string) => boolean) => all.filter(({ path }) => test(path));
  const firstPaths = (files: readonly HubFile[]) =>
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
    const selected = pick((path) => names.includes(path));
    if (selected.length === names.length) return selected;
    throw new GraftError(
      'usage',
      `The repository has no file ${names.find((name) => !selected.some(({ path }) => path === name))}`,
      { place: repo, hint: `Its GGUF files: ${firstPaths(ggufs)}` },
    );
  }
  const named = (name: string) => pick((path) => path === name);
  const index = named('model.safetensors.index.json');
  const weights = [
    named('model.safetensors'),
    [...index, ...(index.length > 0 ? pick((path) => /^model-\d{5}-of-\d{5}\.safetensors$/.test(path)) : [])],
    named('adapter_model.safetensors'),
    pick((path) => /^[^/]+\.safetensors(\.index\.json)?$/.test(path)),
    named('pytorch_model.bin'),
    pick((path) => /^pytorch_model(-\d{5}-of-\d{5}\.bin|\.bin\.index\.json)$/.test(path)),
    named('adapter_model.bin'),
  ].find((files) => files.length > 0);
  if (weights) return [...pick((path) => COMPANIONS.test(path)), ...weights];
  throw new GraftError('input', 'The repository has no weights in safetensors or pytorch_model.bin', {
    place: repo,
    hint:
      ggufs.length > 0
        ? `Choose one of its GGUF files, such as ${repo}/${ggufs[0]!.path}`
        : 'Choose a repository with safetensors or GGUF',
  });
}

const totalBytes = (entries: readonly HubFile[]) => entries.reduce((bytes, { size }) => bytes + size, 0);

/** Downloads the files that the snapshot does not have yet. @param check is called when config.json, the first one, is there */
async function downloadAll(
  hub: HubClient,
  snapshot: string,
  commit: string,
  files: readonly HubFile[],
  progress: ResolveOptions['progress'],
  check: (snapshot: string) => void = () => {},
): Promise<void> {
  // A file gets its name after its hash was checked.
  const isDownloaded = ({ path }: HubFile) => existsSync(join(snapshot, path));
  const missing = files.filter((file) => !isDownloaded(file));
  const { bavail, bsize } = statfsSync(snapshot);
  if (totalBytes(missing) > bavail * bsize)
    throw new GraftError(
      'environment',
      `The ${hub.kind} needs ${mb(totalBytes(missing))}, and the disk has ${mb(bavail * bsize)} free`,
      {
        place: snapshot,
        hint: 'Free some space, or set GRAFT_CACHE to a directory on another disk',
      },
    );
  const total = totalBytes(files);
  let received = totalBytes(files.filter(isDownloaded));
  let checked = false;
  for (const file of missing) {
    if (!checked && file.path !== 'config.json') {
      check(snapshot);
      checked = true;
    }
    const target = join(snapshot, file.path);
    makeDirectory(dirname(target));
    await hub.fetch(file, commit, target, (bytes) =>
      progress?.({ file: file.path, received: received + bytes, total }),
    );
    received += file.size;
  }
}

const mb = (bytes: number) => `${Math.ceil(bytes / 1e6)} MB`;

/**
 * Which modules of a model a config selects, by PEFT's rules to the letter (peft/tuners/tuners_utils.py
 * `check_target_module_exists`, peft/utils/other.py `get_pattern_key`).
 */
import { GraftError, nearest } from '../../base/index.ts';
import type { Candidate } from './candidates.ts';
import { fullMatch, pythonSource } from './python-regex.ts';

export interface TargetConfig {
  readonly target_modules?: string | readonly string[] | null | undefined;
  readonly exclude_modules?: string | readonly string[] | null | undefined;
  readonly layers_to_transform?: number | readonly number[] | null | undefined;
  readonly layers_pattern?: string | readonly string[] | null | undefined;
  readonly modules_to_save?: readonly string[] | null | undefined;
}

const lastPart = (path: string): string => path.split('.').at(-1)!;

const endsInName = (path: string, names: readonly string[]) => names.some((n) => path === n || path.endsWith(`.${n}`));

/** The layer number in a path, behind the name of a list of layers. */
function layerNumber(path: string, pattern: TargetConfig['layers_pattern']): number | undefined {
  const lists = pattern == null || pattern.length === 0 ? [] : typeof pattern === 'string' ? [pattern] : pattern;
  // A named list may be the first part of a path; without a name, something has to precede the list.
  const sources =
    lists.length > 0
      ? lists.map((list) => `^(?:.*?\\.)?${pythonSource(list)}\\.(\\d+)\\.`)
      : ['^.*?\\.[^.]*\\.(\\d+)\\.'];
  for (const source of sources) {
    const match = new RegExp(source).exec(path);
    if (match) return Number(match[1]);
  }
  return undefined;
}

/** Whether `path` is a target of a list or a regular expression (not of `all-linear`). */
function isTarget(path: string, config: TargetConfig, targets: string | readonly string[]): boolean {
  if (typeof targets === 'string') return fullMatch(targets, 'target_modules').test(path);
  if (targets.includes(path)) return true;
  if (!endsInName(path, targets)) return false;
  // As in PEFT, layers are looked at only where a name matched as a suffix.
  const layers = config.layers_to_transform;
  if (layers == null || (Array.isArray(layers) && layers.length === 0)) return true;
  const layer = layerNumber(path, config.layers_pattern);
  return layer !== undefined && (typeof layers === 'number' ? layer === layers : (layers as number[]).includes(layer));
}

const isWithin = (path: string, modules: readonly string[] | null | undefined) =>
  (modules ?? []).some((name) => new RegExp(`(^|.*\\.)${pythonSource(name)}($|\\..*)`, 's').test(path));

/**
 * Returns the modules that `config` selects, in the model's order.
 * @param defaults names of the targets when `target_modules` is not given
 * @throws GraftError 'usage' when nothing matches, when a match is not a layer, or when fields exclude one another
 */
export function selectTargets(
  candidates: readonly Candidate[],
  config: TargetConfig,
  defaults: readonly string[],
): Candidate[] {
  const targets = config.target_modules ?? defaults;
  if (typeof targets === 'string' && config.layers_to_transform != null) {
    throw new GraftError('usage', 'layers_to_transform needs target_modules as a list of names, not as one string');
  }
  if (typeof targets === 'string' && config.layers_pattern != null) {
    throw new GraftError('usage', 'layers_pattern needs target_modules as a list of names, not as one string');
  }
  if (config.layers_pattern != null && config.layers_pattern.length > 0 && config.layers_to_transform == null) {
    throw new GraftError('usage', 'layers_pattern has no effect without layers_to_transform', {
      place: 'layers_pattern',
      hint: 'Set layers_to_transform too',
    });
  }
  const selected = matching(candidates, config, targets);
  const unsupported = selected.find(({ kind }) => kind === 'other');
  if (unsupported) {
    throw new GraftError(
      'usage',
      `target_modules selects '${unsupported.path}', which is neither a linear layer nor an embedding`,
      {
        place: 'target_modules',
        hint: 'Name the linear layers inside it, or use all-linear',
      },
    );
  }
  if (selected.length === 0) throw noTarget(candidates, config, targets);
  return selected;
}

function matching(
  candidates: readonly Candidate[],
  config: TargetConfig,
  targets: string | readonly string[],
): Candidate[] {
  const allLinear = typeof targets === 'string' && targets.toLowerCase() === 'all-linear';
  return candidates.filter(({ path, kind, head, trained }) => {
    if (path === '' || trained || isExcluded(path, config) || isWithin(path, config.modules_to_save)) return false;
    return allLinear ? kind === 'linear' && !head : isTarget(path, config, targets);
  });
}

function isExcluded(path: string, { exclude_modules: names }: TargetConfig): boolean {
  if (names == null || names.length === 0) return false;
  return typeof names === 'string' ? fullMatch(names, 'exclude_modules').test(path) : endsInName(path, names);
}

/** The names of targets and of modules to leave out, and the numbers of layers, that select nothing in a model, in a sentence each. */
export function unmatchedTargets(candidates: readonly Candidate[], config: TargetConfig): string[] {
  const layers = candidates.filter(({ kind, trained }) => kind !== 'other' && !trained);
  const names = new Set(layers.map(({ path }) => lastPart(path)));
  const unmatched = (field: 'target_modules' | 'exclude_modules') => {
    const given = config[field];
    const parts = given == null ? [] : typeof given === 'string' ? (field === 'exclude_modules' ? [given] : []) : given;
    return parts.flatMap((name) => {
      const matches = (path: string) =>
        typeof given === 'string' ? fullMatch(name, field).test(path) : endsInName(path, [name]);
      if (candidates.some(({ path }) => matches(path))) return [];
      const near = nearest(name, names);
      return [`${field} '${name}' matches no module${near ? `; did you mean '${near}'?` : ''}`];
    });
  };
  const numbers = [config.layers_to_transform ?? []].flat();
  const present = new Set(candidates.map(({ path }) => layerNumber(path, config.layers_pattern)));
  return [
    ...unmatched('target_modules'),
    ...unmatched('exclude_modules'),
    ...numbers.filter((n) => !present.has(n)).map((n) => `layers_to_transform: the model has no layer ${n}`),
  ];
}

/** The error for a config that selects nothing: the field that leaves out what the targets match, or the targets. */
function noTarget(
  candidates: readonly Candidate[],
  config: TargetConfig,
  targets: string | readonly string[],
): GraftError {
  const without = (field: keyof TargetConfig) => matching(candidates, { ...config, [field]: undefined }, targets);
  for (const field of ['exclude_modules', 'modules_to_save', 'layers_to_transform'] as const) {
    const left = config[field] == null ? [] : without(field);
    if (left.length === 0) continue;
    const named = [...new Set(left.map(({ path }) => lastPart(path)))].join(', ');
    const why = field === 'layers_to_transform' ? 'has none of' : field === 'exclude_modules' ? 'leaves out' : 'names';
    return new GraftError(
      'usage',
      `${field} ${JSON.stringify(config[field])} ${why} the ${left.length} modules that target_modules selects: ${named}`,
      {
        place: field,
        hint:
          field === 'layers_to_transform'
            ? 'Layers are counted from 0; name some that the model has'
            : 'Name fewer modules in it, or others under target_modules',
      },
    );
  }
  const layers = candidates.filter(({ kind, trained }) => kind !== 'other' && !trained);
  const names = [...new Set(layers.map(({ path }) => lastPart(path)))];
  const first = typeof targets === 'string' ? targets : (targets[0] ?? '');
  const near = nearest(first, names);
  return new GraftError('usage', `target_modules selects no module: ${JSON.stringify(targets)} matches no module`, {
    place: 'target_modules',
    hint: near && near !== first ? `Did you mean '${near}'?` : `The layers of this model are ${names.join(', ')}`,
  });
}

/** Returns the value of the first pattern that matches `path`, else `fallback`. */
export function byPattern<T>(patterns: Readonly<Record<string, T>>, path: string, fallback: T): T {
  for (const [key, value] of Object.entries(patterns)) if (matchesPattern(key, path)) return value;
  return fallback;
}

/** Whether a key of `rank_pattern` or `alpha_pattern` matches a path: as the regular expression `(.*\.)?(KEY)$`. */
export function matchesPattern(key: string, path: string): boolean {
  return fullMatch(`(?:.*\\.)?(?:${key})`, 'rank_pattern or alpha_pattern').test(path);
}

/**
 * Returns `target_modules` for the saved config. `all-linear` and the defaults become names that any reader understands: the
 * last parts of the paths where these select exactly the same modules, else the paths.
 * @param paths the modules that were selected
 * @param allPaths every module of the model
 */
export function savedTargets(
  targets: TargetConfig['target_modules'],
  paths: readonly string[],
  allPaths: readonly string[],
): string | readonly string[] {
  if (targets && (typeof targets !== 'string' || targets.toLowerCase() !== 'all-linear')) return targets;
  const names = [...new Set(paths.map(lastPart))].sort();
  const exact = allPaths.filter((path) => names.includes(lastPart(path))).length === paths.length;
  return exact ? names : paths;
}

/**
 * Which modules a method goes on: PEFT's own rules, to the letter (peft/tuners/tuners_utils.py
 * `check_target_module_exists`, peft/utils/other.py `get_pattern_key`).
 */
import { GraftError, nearest } from '../../base/index.ts';
import { Embedding, type Model, namedModules, unwrapped } from '../../nn/index.ts';

export interface TargetConfig {
  readonly target_modules?: string | readonly string[] | null | undefined;
  readonly exclude_modules?: string | readonly string[] | null | undefined;
  readonly layers_to_transform?: number | readonly number[] | null | undefined;
  readonly layers_pattern?: string | readonly string[] | null | undefined;
  readonly modules_to_save?: readonly string[] | null | undefined;
}

/** One module of a model, as far as selection is concerned. */
export interface Candidate {
  readonly path: string;
  readonly kind: 'linear' | 'embedding' | 'other';
  /** The output projection: `all-linear` leaves it out. */
  readonly head?: boolean;
  /** In the head that is trained whole beside every method: never a target. */
  readonly trained?: boolean;
}

/** Python's regular expressions in JavaScript's spelling: flags in front, named groups, \\A and \\Z. */
function regex(pattern: string, place: string): RegExp {
  const [, flags = '', rest = ''] = /^(?:\(\?([aimsu]+)\))?(.*)$/s.exec(pattern)!;
  const body = rest.replaceAll('(?P<', '(?<').replaceAll(/\\A|\\Z/g, (at) => (at === '\\A' ? '^' : '$'));
  try {
    return new RegExp(`^(?:${body})$`, flags.replaceAll(/[au]/g, ''));
  } catch (cause) {
    throw new GraftError('usage', `'${pattern}' is no regular expression: ${(cause as Error).message}`, {
      place,
      cause,
    });
  }
}

const endsIn = (path: string, names: readonly string[]) => names.some((n) => path === n || path.endsWith(`.${n}`));

function layerOf(path: string, pattern: TargetConfig['layers_pattern']): number | undefined {
  const patterns = pattern == null || pattern.length === 0 ? [] : typeof pattern === 'string' ? [pattern] : pattern;
  // A named list may be the model's first part; without a name there has to be something in front of it.
  const tried =
    patterns.length > 0 ? patterns.map((p) => `^(?:.*?\\.)?${p}\\.(\\d+)\\.`) : ['^.*?\\.[^.]*\\.(\\d+)\\.'];
  for (const source of tried) {
    const found = new RegExp(source).exec(path);
    if (found) return Number(found[1]);
  }
  return undefined;
}

/** Whether `path` is a target of a list or regex (not of `all-linear`). */
function matches(path: string, config: TargetConfig, targets: string | readonly string[]): boolean {
  if (typeof targets === 'string') return regex(targets, 'target_modules').test(path);
  if (targets.includes(path)) return true;
  if (!endsIn(path, targets)) return false;
  // Layers are looked at only where a name matched as a suffix.
  const wanted = config.layers_to_transform;
  if (wanted == null || (Array.isArray(wanted) && wanted.length === 0)) return true;
  const layer = layerOf(path, config.layers_pattern);
  return layer !== undefined && (typeof wanted === 'number' ? layer === wanted : (wanted as number[]).includes(layer));
}

const within = (path: string, modules: readonly string[] | null | undefined) =>
  (modules ?? []).some((m) => new RegExp(`(^|.*\\.)${m}($|\\..*)`, 's').test(path));

/**
 * The modules that `config` selects, in the model's order.
 * @param defaults what is targeted when `target_modules` is not given
 * @throws GraftError 'usage' when nothing matches, when a match cannot carry the method, or when options contradict
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
    throw new GraftError('usage', 'layers_pattern says where the layer number stands: give layers_to_transform too');
  }
  const allLinear = typeof targets === 'string' && targets.toLowerCase() === 'all-linear';
  const excluded = (path: string) => {
    const out = config.exclude_modules;
    if (out == null || out.length === 0) return false;
    return typeof out === 'string' ? regex(out, 'exclude_modules').test(path) : endsIn(path, out);
  };
  const selected = candidates.filter(({ path, kind, head, trained }) => {
    if (path === '' || trained || excluded(path) || within(path, config.modules_to_save)) return false;
    return allLinear ? kind === 'linear' && !head : matches(path, config, targets);
  });
  const wrong = selected.find(({ kind }) => kind === 'other');
  if (wrong) {
    throw new GraftError(
      'usage',
      `target_modules selects '${wrong.path}', which is neither a linear layer nor an embedding`,
      {
        place: 'target_modules',
        hint: 'Name the linear layers inside it, or use all-linear',
      },
    );
  }
  if (selected.length === 0) throw nothing(candidates, targets);
  return selected;
}

function nothing(candidates: readonly Candidate[], targets: string | readonly string[]): GraftError {
  const names = [
    ...new Set(candidates.filter((c) => c.kind !== 'other' && !c.trained).map((c) => c.path.split('.').at(-1)!)),
  ];
  const first = typeof targets === 'string' ? targets : (targets[0] ?? '');
  const near = nearest(first, names);
  return new GraftError('usage', `target_modules selects no module: ${JSON.stringify(targets)}`, {
    place: 'target_modules',
    hint: near && near !== first ? `Did you mean '${near}'?` : `This model has ${names.join(', ')}`,
  });
}

/** The value of the first pattern (in the order given) that fits `path`, or `fallback`; keys are tried as `(.*\.)?(KEY)$`. */
export function byPattern<T>(patterns: Readonly<Record<string, T>>, path: string, fallback: T): T {
  for (const [key, value] of Object.entries(patterns)) if (patternFits(key, path)) return value;
  return fallback;
}

export function patternFits(key: string, path: string): boolean {
  return new RegExp(`^(?:.*\\.)?(?:${key.replaceAll('(?P<', '(?<')})$`, 's').test(path);
}

/**
 * What a saved config says of the targets: `all-linear` and the defaults as names that any reader understands, last parts
 * where they say it exactly, else paths.
 */
export function savedTargets(
  given: TargetConfig['target_modules'],
  paths: readonly string[],
  all: readonly string[],
): string | readonly string[] {
  if (given && (typeof given !== 'string' || given.toLowerCase() !== 'all-linear')) return given;
  const last = [...new Set(paths.map((path) => path.split('.').at(-1)!))].sort();
  const exact = all.filter((path) => last.includes(path.split('.').at(-1)!)).length === paths.length;
  return exact ? last : paths;
}

/** Whether a path lies in the head that is trained whole beside every method. As `modules_to_save` finds it: by the end of a part. */
export function inTrainedHead({ task, sites: { head } }: Model): (path: string) => boolean {
  if (task.labels.length === 0 || head === undefined) return () => false;
  return (path) => path.split('.').some((part) => part.endsWith(head));
}

/** The modules of a model as candidates. */
export function candidatesOf(model: Model): Candidate[] {
  const { head } = model.sites;
  const trained = inTrainedHead(model);
  return [...namedModules(model.root)].map(([path, module]) => ({
    path,
    kind: isLinear(module) ? 'linear' : unwrapped(module) instanceof Embedding ? 'embedding' : 'other',
    head: path === head,
    trained: trained(path),
  }));
}

/** Linear layers and what stands in for one. */
function isLinear(module: object): boolean {
  return 'inFeatures' in module && 'outFeatures' in module;
}

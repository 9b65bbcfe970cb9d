/** What sentence-transformers keeps beside a checkpoint: how hidden states become the vector of a sentence. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { readJsonObject } from '../io/index.ts';
import { type Pooling, poolings, type TaskHead } from '../nn/index.ts';

/** Old files have one switch for each kind of pooling. */
const switches: Readonly<Record<string, Pooling>> = {
  pooling_mode_mean_tokens: 'mean',
  pooling_mode_cls_token: 'cls',
  pooling_mode_max_tokens: 'max',
  pooling_mode_lasttoken: 'lasttoken',
};

/**
 * Pooling and normalisation as `modules.json` of the directory says, or the folders that it would name; nothing where there
 * is neither.
 * @throws GraftError 'input' for a module or a pooling that Graft does not have
 */
export function sentenceSettings(dir: string): Pick<TaskHead, 'pooling' | 'normalize'> {
  const list = join(dir, 'modules.json');
  if (!existsSync(list)) {
    const pooling = join(dir, '1_Pooling', 'config.json');
    const normalize = existsSync(join(dir, '2_Normalize'));
    return { ...(existsSync(pooling) && { pooling: poolingOf(pooling) }), ...(normalize && { normalize }) };
  }
  const modules = JSON.parse(readFileSync(list, 'utf8')) as { type: string; path: string }[];
  const settings: { pooling?: Pooling; normalize?: boolean } = {};
  for (const { type, path } of modules) {
    const kind = type.split('.').at(-1)!;
    if (kind === 'Pooling') settings.pooling = poolingOf(join(dir, path, 'config.json'));
    else if (kind === 'Normalize') settings.normalize = true;
    else if (kind !== 'Transformer') {
      throw new GraftError('input', `sentences pass a module '${kind}', which Graft does not have`, { place: list });
    }
  }
  return settings;
}

/** Tokens of a sentence at most, as sentence_bert_config.json of the directory says; undefined where it does not. */
export function sentenceLength(dir: string): number | undefined {
  const place = join(dir, 'sentence_bert_config.json');
  const { max_seq_length: most } = existsSync(place) ? readJsonObject(place) : {};
  return typeof most === 'number' ? most : undefined;
}

function poolingOf(place: string): Pooling {
  const config = readJsonObject(place);
  const on = Object.entries(config).filter(([key, value]) => key.startsWith('pooling_mode_') && value === true);
  const named =
    typeof config.pooling_mode === 'string' ? [config.pooling_mode] : on.map(([key]) => switches[key] ?? key);
  const [pooling, ...more] = named;
  if (more.length === 0 && poolings.some((known) => known === pooling)) return pooling as Pooling;
  throw new GraftError('input', `sentences are pooled by ${named.join(' and ') || 'nothing'}`, {
    place,
    hint: `Graft has ${poolings.join(', ')}, one at a time`,
  });
}

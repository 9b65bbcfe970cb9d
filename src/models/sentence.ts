/** The settings of sentence-transformers beside a checkpoint: how the hidden states of a sentence become one vector. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { readJsonObject } from '../io/index.ts';
import { type Pooling, poolings, type TaskHead } from '../nn/index.ts';

/** The switch that older config files have for each kind of pooling. */
const poolingSwitches: Readonly<Record<string, Pooling>> = {
  pooling_mode_mean_tokens: 'mean',
  pooling_mode_cls_token: 'cls',
  pooling_mode_max_tokens: 'max',
  pooling_mode_lasttoken: 'lasttoken',
};

/**
 * Returns pooling and normalisation from the directory's `modules.json`, or without one from the folders that it usually
 * names; an empty object where neither exists.
 * @throws GraftError 'input' for an unsupported module or kind of pooling
 */
export function sentenceSettings(dir: string): Pick<TaskHead, 'pooling' | 'normalize'> {
  const modulesFile = join(dir, 'modules.json');
  if (!existsSync(modulesFile)) {
    const pooling = join(dir, '1_Pooling', 'config.json');
    const normalize = existsSync(join(dir, '2_Normalize'));
    return { ...(existsSync(pooling) && { pooling: poolingOf(pooling) }), ...(normalize && { normalize }) };
  }
  const modules = JSON.parse(readFileSync(modulesFile, 'utf8')) as { type: string; path: string }[];
  const settings: { pooling?: Pooling; normalize?: boolean } = {};
  for (const { type, path } of modules) {
    const kind = type.split('.').at(-1)!;
    if (kind === 'Pooling') settings.pooling = poolingOf(join(dir, path, 'config.json'));
    else if (kind === 'Normalize') settings.normalize = true;
    else if (kind !== 'Transformer') {
      throw new GraftError('input', `sentence-transformers module '${kind}' is not supported`, {
        place: modulesFile,
        hint: 'Graft has Transformer, Pooling and Normalize',
      });
    }
  }
  return settings;
}

/**
 * Returns the most tokens of a sentence, from the directory's sentence_bert_config.json; undefined where it has no such
 * number.
 */
export function sentenceLength(dir: string): number | undefined {
  const place = join(dir, 'sentence_bert_config.json');
  const { max_seq_length: maxLength } = existsSync(place) ? readJsonObject(place) : {};
  return typeof maxLength === 'number' ? maxLength : undefined;
}

function poolingOf(place: string): Pooling {
  const config = readJsonObject(place);
  const switchedOn = Object.entries(config).filter(([key, value]) => key.startsWith('pooling_mode_') && value === true);
  const modes =
    typeof config.pooling_mode === 'string'
      ? [config.pooling_mode]
      : switchedOn.map(([key]) => poolingSwitches[key] ?? key);
  const pooling = poolings.find((name) => name === modes[0]);
  if (modes.length === 1 && pooling) return pooling;
  throw new GraftError('input', `pooling by ${modes.join(' and ') || 'no mode'} is not supported`, {
    place,
    hint: `Graft has ${poolings.join(', ')}, one at a time`,
  });
}

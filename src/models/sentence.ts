/** The settings of sentence-transformers beside a checkpoint: what happens to a sentence, and how it becomes one vector. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { readJsonObject } from '../io/index.ts';
import { type Pooling, poolings, type TaskHead } from '../nn/index.ts';

type SentenceSettings = Pick<TaskHead, 'pooling' | 'normalize' | 'dimensions' | 'prompt' | 'lowercase'>;

/** The switch that older config files have for each kind of pooling; of several, the vectors follow in this order. */
const poolingSwitches: Readonly<Record<string, Pooling>> = {
  pooling_mode_cls_token: 'cls',
  pooling_mode_max_tokens: 'max',
  pooling_mode_mean_tokens: 'mean',
  pooling_mode_mean_sqrt_len_tokens: 'mean_sqrt_len_tokens',
  pooling_mode_weightedmean_tokens: 'weightedmean',
  pooling_mode_lasttoken: 'lasttoken',
};

/** The fields of the settings of the first module that change nothing for `encode`: the others are read, or refused. */
const withoutEffect = [
  'max_seq_length',
  'do_lower_case',
  'transformer_task',
  'modality_config',
  'module_output_name',
  'unpad_inputs',
  'query_length',
  'document_length',
  'query_expansion',
];

const unsupported = (place: string, problem: string, hint: string) => new GraftError('input', problem, { place, hint });

const optionalJson = (place: string): Record<string, unknown> => (existsSync(place) ? readJsonObject(place) : {});

/**
 * Returns what `SentenceTransformer.encode` (sentence-transformers 6) does with the files of this directory: `modules.json`, or
 * without one the folders that it usually names, the settings of the first module, and the default prompt.
 * @throws GraftError 'input' for a module, a kind of pooling or a setting that is not supported
 */
export function sentenceSettings(dir: string): SentenceSettings {
  const { do_lower_case: lowercase, ...transformer } = transformerSettings(dir);
  const odd = Object.entries(transformer).find(([name, value]) => !withoutEffect.includes(name) && !isEmpty(value));
  if (odd) {
    throw unsupported(
      join(dir, 'sentence_bert_config.json'),
      `the setting '${odd[0]}' of sentence-transformers is not supported`,
      'Leave it out, or use another model',
    );
  }
  const config = readConfig(dir);
  const modules = modulesOf(dir);
  if (config.prompt && modules.includePrompt === false) {
    throw unsupported(
      join(dir, 'config_sentence_transformers.json'),
      'a default prompt that is left out of the pooling (include_prompt: false) is not supported',
      'Take default_prompt_name out, and write the prompt into the texts',
    );
  }
  return { ...modules.settings, ...config, ...(lowercase === true && { lowercase }) };
}

const isEmpty = (value: unknown): boolean => value == null || value === false || JSON.stringify(value) === '{}';

/** The settings of the first module, in the first of the files that sentence-transformers looks for. */
function transformerSettings(dir: string): Record<string, unknown> {
  const kinds = ['bert', 'roberta', 'distilbert', 'camembert', 'albert', 'xlm-roberta', 'xlnet'];
  const file = kinds.map((kind) => join(dir, `sentence_${kind}_config.json`)).find((path) => existsSync(path));
  return file === undefined ? {} : readJsonObject(file);
}

/** Prompt and size of vectors from config_sentence_transformers.json. */
function readConfig(dir: string): Pick<SentenceSettings, 'prompt' | 'dimensions'> {
  const place = join(dir, 'config_sentence_transformers.json');
  const { prompts = {}, default_prompt_name: name, truncate_dim: dimensions } = optionalJson(place);
  const prompt = typeof name === 'string' ? (prompts as Record<string, unknown>)[name] : undefined;
  // `query` and `document` are there without a file too, and are empty.
  if (typeof name === 'string' && typeof prompt !== 'string' && name !== 'query' && name !== 'document') {
    throw unsupported(
      place,
      `default_prompt_name '${name}' is not one of the prompts`,
      'Correct the name, or leave it out',
    );
  }
  return {
    ...(typeof prompt === 'string' && prompt !== '' && { prompt }),
    ...(typeof dimensions === 'number' && { dimensions }),
  };
}

/** Pooling and normalisation. */
function modulesOf(dir: string): { settings: SentenceSettings; includePrompt?: boolean } {
  const place = join(dir, 'modules.json');
  if (!existsSync(place)) {
    const pooling = join(dir, '1_Pooling', 'config.json');
    const normalize = existsSync(join(dir, '2_Normalize')) && { normalize: true };
    const pooled = existsSync(pooling) ? readPooling(pooling) : { settings: {} };
    return { ...pooled, settings: { ...pooled.settings, ...normalize } };
  }
  const modules = JSON.parse(readFileSync(place, 'utf8')) as { type: string; path: string }[];
  const kinds = modules.map(({ type }) => type.split('.').at(-1)!);
  const supported = ['Transformer', 'Pooling', 'Normalize'];
  const other = kinds.find((kind) => !supported.includes(kind));
  const hint = `Graft has ${supported.join(', ')}, in this order`;
  if (other) throw unsupported(place, `sentence-transformers module '${other}' is not supported`, hint);
  if (kinds.join() !== supported.slice(0, Math.max(2, kinds.length)).join())
    throw unsupported(place, `the modules ${kinds.join(', ')} are not supported in this order`, hint);
  const [transformer, pooling, normalize] = modules.map(({ path }) => path);
  if (transformer !== '')
    throw unsupported(place, `a Transformer in the folder '${transformer}' is not supported`, 'Move its files up');
  const input = normalize && optionalJson(join(dir, normalize, 'config.json')).module_input_name;
  if (input && input !== 'sentence_embedding')
    throw unsupported(place, `Normalize of '${input}' is not supported`, 'Use a model that normalises its vectors');
  const pooled = readPooling(join(dir, pooling!, 'config.json'));
  return { ...pooled, settings: { ...pooled.settings, ...(kinds.length === 3 && { normalize: true }) } };
}

function readPooling(place: string): { settings: SentenceSettings; includePrompt: boolean } {
  const config = readJsonObject(place);
  const unknown = Object.keys(config).find(
    (key) => /^pooling_mode_/.test(key) && config[key] === true && !poolingSwitches[key],
  );
  const switched = Object.keys(poolingSwitches).filter((key) => config[key] === true);
  const names = config.pooling_mode
    ? [config.pooling_mode].flat()
    : unknown
      ? [unknown]
      : switched.map((key) => poolingSwitches[key]!);
  const modes = names.length === 0 ? ['mean' as const] : names;
  const isPooling = (name: unknown): name is Pooling => poolings.some((pooling) => pooling === name);
  if (!modes.every(isPooling)) {
    const other = modes.find((mode) => !isPooling(mode));
    throw unsupported(place, `pooling by ${String(other)} is not supported`, `Graft has ${poolings.join(', ')}`);
  }
  return {
    settings: { pooling: modes.length === 1 ? modes[0]! : modes },
    includePrompt: config.include_prompt !== false,
  };
}

/**
 * Returns the most tokens of a sentence: `max_seq_length` of the settings, else the tokenizer's `model_max_length`; undefined
 * where neither file has a number.
 */
export function sentenceLength(dir: string): number | undefined {
  const { max_seq_length: ofSentences } = transformerSettings(dir);
  const { model_max_length: ofTexts } = optionalJson(join(dir, 'tokenizer_config.json'));
  return [ofSentences, ofTexts].find((length) => typeof length === 'number');
}

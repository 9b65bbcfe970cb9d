/** The Python class that transformers reads a tokenizer with, and the special tokens that it has where no file names others. */
import type { JsonObject } from './component.ts';

/** The roles of special tokens; tokenizer_config.json has each as `<role>_token`. */
export const roles = ['bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'] as const;
export type Role = (typeof roles)[number];
export type RoleTokens = Readonly<Partial<Record<Role, string>>>;

const bert: RoleTokens = { unk: '[UNK]', sep: '[SEP]', pad: '[PAD]', cls: '[CLS]', mask: '[MASK]' };
const gpt2: RoleTokens = { bos: '<|endoftext|>', eos: '<|endoftext|>', unk: '<|endoftext|>' };
const roberta: RoleTokens = {
  bos: '<s>',
  eos: '</s>',
  unk: '<unk>',
  sep: '</s>',
  pad: '<pad>',
  cls: '<s>',
  mask: '<mask>',
};
const deberta: RoleTokens = { ...bert, bos: '[CLS]', eos: '[SEP]' };

/** By class name without `Tokenizer`. Source: the defaults of `__init__` in transformers 5.23 (`models/<type>/tokenization_<type>.py`). */
const tokensOfClass: Readonly<Record<string, RoleTokens>> = {
  Albert: { ...deberta, unk: '<unk>', pad: '<pad>' },
  Bart: roberta,
  Bert: bert,
  Camembert: roberta,
  Cohere: {
    bos: '<BOS_TOKEN>',
    eos: '<|END_OF_TURN_TOKEN|>',
    unk: '<UNK>',
    sep: '<SEP>',
    pad: '<PAD>',
    cls: '<CLS>',
    mask: '<MASK_TOKEN>',
  },
  Deberta: deberta,
  DebertaV2: deberta,
  DistilBert: bert,
  Electra: bert,
  GPT2: gpt2,
  GPTNeoX: { ...gpt2, pad: '<|padding|>' },
  Gemma: { bos: '<bos>', eos: '<eos>', unk: '<unk>', pad: '<pad>', mask: '<mask>' },
  Llama: { bos: '<s>', eos: '</s>', unk: '<unk>' },
  MPNet: { ...roberta, unk: '[UNK]' },
  Qwen2: { eos: '<|endoftext|>', unk: '<|endoftext|>', pad: '<|endoftext|>' },
  Roberta: roberta,
  T5: { eos: '</s>', unk: '<unk>', pad: '<pad>' },
  XLMRoberta: roberta,
};

/** The class that a model type is registered with. Source: `TOKENIZER_MAPPING_NAMES` of transformers 5.23; Llama has none. */
const classOfModel: Readonly<Record<string, string>> = {
  bert: 'Bert',
  camembert: 'Camembert',
  distilbert: 'Bert',
  gpt2: 'GPT2',
  gpt_neox: 'GPTNeoX',
  mistral: 'generic',
  qwen2: 'Qwen2',
  qwen3: 'Qwen2',
  roberta: 'Roberta',
  'xlm-roberta': 'XLMRoberta',
};

const shortName = (name: unknown): string | undefined =>
  typeof name === 'string' ? name.replace(/Tokenizer(Fast)?$/, '') : undefined;

/**
 * The class that AutoTokenizer chooses, without `Tokenizer`; undefined for the generic one, whose tokenizer.json says all.
 * Source: `AutoTokenizer.from_pretrained` of transformers 5.23.
 * @param config tokenizer_config.json
 * @param modelConfig config.json
 * @param json tokenizer.json, where there is one
 */
export function tokenizerClassOf(config: JsonObject, modelConfig: JsonObject, json?: JsonObject): string | undefined {
  const named = shortName(config.tokenizer_class ?? modelConfig.tokenizer_class);
  const type = String(modelConfig.model_type ?? '');
  const registered = classOfModel[type];
  const isByteLevel = JSON.stringify([json?.pre_tokenizer, json?.decoder]).includes('"ByteLevel"');
  if (named === 'Llama' && isByteLevel) return undefined; // Llama 3 under the class of Llama 2
  let chosen = named ?? registered;
  // Registered with the generic class, or (Qwen 2) known for files that name a wrong one.
  if (named !== registered && (registered === 'generic' || type === 'qwen2')) chosen = registered;
  return chosen !== undefined && chosen in tokensOfClass ? chosen : undefined;
}

/** The special tokens of a class by role; none for the generic class. */
export const tokensOf = (tokenizerClass: string | undefined): RoleTokens =>
  tokenizerClass === undefined ? {} : tokensOfClass[tokenizerClass]!;

/** The post-processors that classes make anew, whatever tokenizer.json has; the others take the file's. */
const processorOfClass: Readonly<Record<string, 'BertProcessing' | 'RobertaProcessing' | 'none'>> = {
  Bert: 'BertProcessing',
  DistilBert: 'BertProcessing',
  Electra: 'BertProcessing',
  GPTNeoX: 'none',
  MPNet: 'RobertaProcessing',
  Roberta: 'RobertaProcessing',
};

/**
 * tokenizer.json as its Python class reads it: some make the `post_processor` anew.
 * @param tokens of the class, by role
 */
export function asClassReads(json: JsonObject, tokenizerClass: string | undefined, tokens: RoleTokens): JsonObject {
  const type = processorOfClass[tokenizerClass ?? ''];
  if (!type) return json;
  if (type === 'none') return { ...json, post_processor: null };
  const { vocab } = json.model as { vocab?: Readonly<Record<string, number>> };
  const [cls, sep] = [tokens.cls, tokens.sep].map((token) => [token, vocab?.[token ?? '']] as const);
  if (cls![1] === undefined || sep![1] === undefined) return json;
  return { ...json, post_processor: { type, cls, sep } };
}

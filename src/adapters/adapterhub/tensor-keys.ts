/** Keys of tensors in AdapterHub's files. Every key contains the adapter's name. */
import type { SavableAdapter } from '../../methods/index.ts';
import type { Model } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';

/** Where a family has its bottlenecks, and the shared parts of an adapter. */
interface Places {
  readonly base: string;
  /** Path of a block, `*` for its number. */
  readonly block: string;
  readonly mh_adapter: string;
  readonly output_adapter: string;
}

const beside = { mh_adapter: 'attention_adapters', output_adapter: 'output_adapters' };
const inside = { mh_adapter: 'attention.output', output_adapter: 'output' };

const places: Readonly<Record<string, Places>> = {
  bert: { base: 'bert', block: 'bert.encoder.layer.*', ...inside },
  roberta: { base: 'roberta', block: 'roberta.encoder.layer.*', ...inside },
  'xlm-roberta': { base: 'roberta', block: 'roberta.encoder.layer.*', ...inside },
  gpt2: { base: 'transformer', block: 'transformer.h.*', ...beside },
  distilbert: { base: 'distilbert', block: 'distilbert.transformer.layer.*', ...beside },
  vit: { base: 'vit', block: 'vit.encoder.layer.*', ...beside, output_adapter: 'output.output_adapters' },
};

/** The Llama family is `model`, or `transformer` where a class of transformers calls it so; alone it is as under a head. */
const placesOf = ({ sites, config }: Model): Places => {
  const base = sites.block.startsWith('transformer.') ? 'transformer' : 'model';
  return places[String(config.model_type)] ?? { base, block: `${base}.layers.*`, ...beside };
};

/** The key in the file of a parameter. */
function fileKey(at: Places, name: string, key: string): string {
  const [, layer, place, rest] = /^layers\.(\d+)\.(mh_adapter|output_adapter)\.(.*)$/.exec(key) ?? [];
  if (layer !== undefined) {
    return `${at.block.replace('*', layer)}.${at[place as 'mh_adapter']}.${name}.${rest}`;
  }
  const dot = key.indexOf('.');
  return `${at.base}.${key.slice(0, dot)}.${name}${key.slice(dot)}`;
}

/** Each parameter of an adapter by its key in the file. */
export function byFileKey(model: Model, name: string, { method, parameters }: SavableAdapter): Map<string, Tensor> {
  const at = placesOf(model);
  const tensors = new Map<string, Tensor>();
  const list = method === 'fusion' ? `adapter_fusion_layer.${name}` : `adapters.${name}`;
  for (const [key, tensor] of parameters) {
    if (method === 'fusion' && key.startsWith('adapters.')) continue;
    const stored = fileKey(at, key.startsWith('layers.') ? list : name, key);
    tensors.set(stored, tensor);
    // AdapterHub has this module under two names.
    const [, path, field] = /^(.*)\.adapter_norm_before\.(weight|bias)$/.exec(stored) ?? [];
    if (path) tensors.set(`${path}.adapter_down.0.${field}`, tensor);
  }
  return tensors;
}

/** As `byFileKey`, under the prefix that the base has among the keys of a file: none where it was saved without a head. */
export function byStoredKey(
  model: Model,
  name: string,
  adapter: SavableAdapter,
  storedKeys: Iterable<string>,
): Map<string, Tensor> {
  const { base } = placesOf(model);
  const keys = [...storedKeys];
  const stored = [base, 'model', 'transformer'].find((prefix) => keys.some((key) => key.startsWith(`${prefix}.`)));
  const moved = (key: string) => (stored ? `${stored}.` : '') + key.slice(base.length + 1);
  return new Map([...byFileKey(model, name, adapter)].map(([key, tensor]) => [moved(key), tensor]));
}

/** A key with the adapter's name changed. */
export const renamedKey = (key: string, from: string, to: string): string =>
  key.replace(
    new RegExp(`(^|\\.)(adapters|invertible_adapters|shared_parameters)\\.${RegExp.escape(from)}\\.`),
    `$1$2.${to}.`,
  );

/** Keys of tensors in AdapterHub's files. Every key contains the adapter's name. */
import type { SavableAdapter } from '../../methods/index.ts';
import type { Family } from '../../models/index.ts';
import type { Model } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import { familyOfType } from '../family-names.ts';

/** Where a model has its bottlenecks and the shared parts of an adapter. */
interface Places {
  /** What precedes the paths of the body: `bert`. */
  readonly prefix: string;
  /** What may precede them in a file. */
  readonly prefixes: readonly string[];
  /** Path of a block, `*` for its number. */
  readonly block: string;
  readonly mh_adapter: string;
  readonly output_adapter: string;
}

/** Names for a family that AdapterHub does not have: those of most decoders. */
const otherFamily: Pick<Family, 'prefixes' | 'adapterHub'> = { prefixes: ['model'], adapterHub: { block: 'layers.*' } };

function placesOf({ sites, config }: Model): Places {
  const family = familyOfType(config.model_type);
  const { prefixes, adapterHub } = family?.adapterHub ? family : otherFamily;
  const { block, mh_adapter = 'attention_adapters', output_adapter = 'output_adapters' } = adapterHub!;
  // A model without a head has no prefix; its adapter is saved as under a head.
  const prefix = prefixes.find((name) => sites.block.startsWith(`${name}.`)) ?? prefixes[0]!;
  return { prefix, prefixes, block: `${prefix}.${block}`, mh_adapter, output_adapter };
}

/** The key in the file of a parameter. */
function fileKey(places: Places, name: string, key: string): string {
  const [, layer, place, rest] = /^layers\.(\d+)\.(mh_adapter|output_adapter)\.(.*)$/.exec(key) ?? [];
  if (layer !== undefined) {
    return `${places.block.replace('*', layer)}.${places[place as 'mh_adapter']}.${name}.${rest}`;
  }
  const dot = key.indexOf('.');
  return `${places.prefix}.${key.slice(0, dot)}.${name}${key.slice(dot)}`;
}

/** Each parameter of an adapter by its key in the file. */
export function byFileKey(model: Model, name: string, { method, parameters }: SavableAdapter): Map<string, Tensor> {
  const places = placesOf(model);
  const tensors = new Map<string, Tensor>();
  const list = method === 'fusion' ? `adapter_fusion_layer.${name}` : `adapters.${name}`;
  for (const [key, tensor] of parameters) {
    if (method === 'fusion' && key.startsWith('adapters.')) continue;
    const stored = fileKey(places, key.startsWith('layers.') ? list : name, key);
    tensors.set(stored, tensor);
    // AdapterHub has this module under two names.
    const [, path, field] = /^(.*)\.adapter_norm_before\.(weight|bias)$/.exec(stored) ?? [];
    if (path) tensors.set(`${path}.adapter_down.0.${field}`, tensor);
  }
  return tensors;
}

/** As `byFileKey`, with the prefix that the body has in a given file: none where the file is of a model without a head. */
export function byStoredKey(
  model: Model,
  name: string,
  adapter: SavableAdapter,
  storedKeys: Iterable<string>,
): Map<string, Tensor> {
  const { prefix, prefixes } = placesOf(model);
  const keys = [...storedKeys];
  const inFile = [prefix, ...prefixes].find((candidate) => keys.some((key) => key.startsWith(`${candidate}.`)));
  const storedKey = (key: string) => (inFile ? `${inFile}.` : '') + key.slice(prefix.length + 1);
  return new Map([...byFileKey(model, name, adapter)].map(([key, tensor]) => [storedKey(key), tensor]));
}

/** A key with the adapter's name changed. */
export const renamedKey = (key: string, from: string, to: string): string =>
  key.replace(
    new RegExp(`(^|\\.)(adapters|invertible_adapters|shared_parameters)\\.${RegExp.escape(from)}\\.`),
    `$1$2.${to}.`,
  );

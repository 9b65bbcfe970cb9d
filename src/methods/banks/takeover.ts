/** How banks take over an adapter that is attached to the model: what it does at each module, in the forms that banks compute with. */
import { Embedding, LayerNorm, Linear, type LinearLayer, type Module, RmsNorm } from '../../nn/index.ts';
import { detachFromScopes, noGrad, ops, scope, Tensor } from '../../tensor/index.ts';
import type { AttachedAdapter } from '../compose.ts';
import { LinearWrapper, type Placement, type RowUpdate, TableWrapper } from '../shared/index.ts';
import type { LinearEntry } from './linear-bank.ts';
import type { AdapterPorts } from './port-bank.ts';
import type { TableEntry } from './table-bank.ts';

/** The number formats in which factors of low rank are held: that of the file, where it is one of these. */
export type FactorType = 'float32' | 'float16' | 'bfloat16';

/** An adapter in the forms that banks hold, by the path of the module. */
export interface HeldAdapter {
  readonly linear: ReadonlyMap<string, LinearEntry>;
  readonly tables: ReadonlyMap<string, TableEntry>;
  readonly norms: ReadonlyMap<string, LayerNorm | RmsNorm>;
  readonly ports: AdapterPorts;
  /** Tensors that were made for it. */
  readonly owned: readonly Tensor[];
}

/** Thrown inside this file: why an adapter cannot be held. */
class NotHeld extends Error {}

interface Draft {
  module?: LinearLayer;
  readonly updates: RowUpdate[];
}

/**
 * Returns an adapter, attached and enabled, as banks hold it, and takes it off the model; or the reason why no bank can hold it, and
 * leaves it on. Factors share the memory of the adapter's own tensors where these are stored so.
 */
export function takeOver(adapter: AttachedAdapter, factors: FactorType): HeldAdapter | string {
  const { placement, parts } = adapter;
  if (!placement) return `${parts.find((part) => !part.placement)!.method} computes in a batch of its own`;
  return noGrad(() => {
    using s = scope();
    const owned: Tensor[] = [];
    const own = (tensor: Tensor) => {
      owned.push(detachFromScopes(s.keep(tensor)));
      return tensor;
    };
    try {
      runEncoders(parts);
      const { linear, tables, norms } = draft(placement, own);
      const entries = new Map([...linear].map(([path, layer]) => [path, finished(path, layer, factors, own)]));
      placement.withdraw();
      const held = { linear: entries, tables, norms, ports: placement.ports, owned };
      for (const tensor of parametersOf(adapter)) tensor.requiresGrad = false;
      freeFactors(placement, held);
      return held;
    } catch (cause) {
      for (const tensor of owned) tensor.dispose();
      if (cause instanceof NotHeld) return cause.message;
      throw cause;
    }
  });
}

/** Every tensor of the adapter that is trained, the task's head included. */
export const parametersOf = ({ parts, head }: AttachedAdapter): Tensor[] => [
  ...parts.flatMap((part) => [...part.parameters.values()]),
  ...head.values(),
];

/** Replaces encoders by what they compute. */
function runEncoders(parts: AttachedAdapter['parts']): void {
  for (const part of parts) {
    const { derived } = part;
    if (!derived) continue;
    using value = derived.value();
    derived.adopt();
    ops.copy_(part.parameters.get(derived.name)!, value);
  }
}

function draft({ wrappers, copies, baseChanges }: Placement, own: (tensor: Tensor) => Tensor) {
  const linear = new Map<string, Draft>();
  const tables = new Map<string, { module?: Embedding; wrappers: TableWrapper[] }>();
  const norms = new Map<string, LayerNorm | RmsNorm>();
  const linearAt = (path: string) => entryAt(linear, path, () => ({ updates: [] }));
  const tableAt = (path: string) => entryAt(tables, path, () => ({ wrappers: [] }));

  for (const { path, copy } of copies.flatMap(({ modules }) => modules)) {
    if (copy instanceof Linear) linearAt(path).module = copy;
    else if (copy instanceof Embedding) tableAt(path).module = copy;
    else if (copy instanceof LayerNorm || copy instanceof RmsNorm) norms.set(path, copy);
    else throw new NotHeld(`'${path}' is trained whole, and is no layer that banks know`);
  }
  for (const { path, module, original, copy } of copies.flatMap(({ biases }) => biases)) {
    if (linear.has(path) || norms.has(path)) throw new NotHeld(`'${path}' is trained whole, and its bias once more`);
    if (module instanceof Linear) linearAt(path).updates.push({ shift: ops.sub(copy, original) });
    else if (module instanceof LayerNorm)
      norms.set(path, new LayerNorm(module.weight, own(ops.detach(copy)), module.eps));
    else throw new NotHeld(`the bias of '${path}' is trained, and it is no layer that banks know`);
  }
  for (const { path, change } of baseChanges) {
    const update = change.rowUpdate?.();
    if (!update) throw new NotHeld(`it changes the base's weight of '${path}'`);
    linearAt(path).updates.push(update);
  }
  for (const { path, wrapper } of wrappers) {
    if (wrapper instanceof TableWrapper) {
      tableAt(path).wrappers.push(wrapper);
      continue;
    }
    const update = wrapper instanceof LinearWrapper ? wrapper.rowUpdate() : undefined;
    if (!update) throw new NotHeld(`its change of '${path}' has no form for some rows of a batch only`);
    linearAt(path).updates.push(update);
  }
  return { linear, tables, norms };
}

function entryAt<E>(entries: Map<string, E>, path: string, make: () => E): E {
  const entry = entries.get(path) ?? make();
  entries.set(path, entry);
  return entry;
}

/** Returns a layer's entry: what its updates multiply the layer's input by is taken out of them, and B is transposed. */
function finished(
  path: string,
  { module, updates }: Draft,
  factors: FactorType,
  own: (t: Tensor) => Tensor,
): LinearEntry {
  let inputGain: Tensor | undefined;
  const held: RowUpdate[] = [];
  for (const { inputGain: gain, lowRank, ...rest } of updates.toReversed()) {
    const outer = inputGain;
    if (outer && rest.after) throw new NotHeld(`one of its methods scales what another reads at '${path}'`);
    const numbers = lowRank?.map(({ a, b, scaling }) => ({
      a: own(inFactorType(outer ? ops.mul(a, outer) : a, outer ? 'float32' : factors)),
      b: own(inFactorType(ops.t(b), factors)),
      scaling,
    }));
    held.unshift({
      ...rest,
      ...(numbers && { lowRank: numbers }),
      ...(rest.gain && { gain: own(ops.contiguous(ops.detach(rest.gain))) }),
      ...(rest.shift && { shift: own(ops.detach(rest.shift)) }),
    });
    if (gain) inputGain = outer ? ops.mul(outer, gain) : gain;
  }
  return {
    ...(module && { module }),
    ...(inputGain && { inputGain: own(ops.contiguous(ops.detach(inputGain))) }),
    updates: held.filter((update) => Object.keys(update).length > 0),
  };
}

const inFactorType = (factor: Tensor, type: FactorType): Tensor => {
  const rows = ops.contiguous(ops.detach(factor));
  return type === 'float32' ? rows : ops.toCopy(rows, { dtype: type });
};

/** Frees the adapter's own tensors that linear layers had, where what is held does not compute with them. */
function freeFactors({ wrappers }: Placement, { linear }: HeldAdapter): void {
  const tensorsOf = (module: Module) => Object.values(module).filter((value) => value instanceof Tensor);
  const isUsed = ({ path, wrapper }: Placement['wrappers'][number]) =>
    wrapper instanceof TableWrapper || linear.get(path)?.updates.some(({ after }) => after);
  const used = new Set(wrappers.filter(isUsed).flatMap(({ wrapper }) => tensorsOf(wrapper)));
  for (const { wrapper } of wrappers) for (const tensor of tensorsOf(wrapper)) if (!used.has(tensor)) tensor.dispose();
}

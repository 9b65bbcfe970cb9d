/** How banks take over an adapter that is attached to the model: what it does at each module, in the forms that banks compute with. */
import type { Steps } from '../../base/index.ts';
import { Embedding, LayerNorm, Linear, type Module, RmsNorm } from '../../nn/index.ts';
import { detachFromScopes, noGrad, ops, scope, Tensor } from '../../tensor/index.ts';
import type { AttachedAdapter } from '../compose.ts';
import {
  type AdapterPlacement,
  LinearWrapper,
  type PlacedPort,
  placementOf,
  type RowUpdate,
  TableWrapper,
} from '../shared/index.ts';
import type { LinearEntry } from './linear-bank.ts';
import { type FactorType, inFactorType, type LinearSource, linearEntry, NotHeld, type Own } from './linear-entry.ts';
import type { AdapterPorts, HeldBottleneck } from './port-bank.ts';
import type { TableEntry } from './table-bank.ts';

/** An adapter in the forms that banks hold, by the path of the module. */
export interface HeldAdapter {
  readonly linear: ReadonlyMap<string, LinearEntry>;
  readonly tables: ReadonlyMap<string, TableEntry>;
  readonly norms: ReadonlyMap<string, LayerNorm | RmsNorm>;
  readonly ports: AdapterPorts;
  /** By block and place. */
  readonly bottlenecks: ReadonlyMap<string, HeldBottleneck>;
  /** Tensors that were made for it. */
  readonly owned: readonly Tensor[];
}

/**
 * Returns an adapter, attached and enabled, as banks hold it, and takes it off the model; or the reason why no bank can hold it, and
 * leaves it on. A step is a layer. Factors share the memory of the adapter's own tensors where these are stored so.
 */
export function* takeOver(
  adapter: AttachedAdapter,
  factors: FactorType,
  beforeStep: () => void,
): Steps<HeldAdapter | string> {
  const { parts } = adapter;
  const placement = placementOf(adapter);
  if (!placement) return `${parts.find((part) => !placementOf(part))!.method} computes in a batch of its own`;
  const owned: Tensor[] = [];
  const own: Own = (tensor) => {
    const kept = detachFromScopes(ops.detach(tensor));
    owned.push(kept);
    return kept;
  };
  const inStep = <T>(compute: () => T) =>
    noGrad(() => {
      using _ = scope();
      beforeStep();
      return compute();
    });
  let isTaken = false;
  try {
    const { sources, tables, norms } = inStep(() => sourcesOf(placement, own));
    const linear = new Map<string, LinearEntry>();
    for (const [path, source] of sources) {
      linear.set(
        path,
        inStep(() => linearEntry(path, source, factors, own)),
      );
      yield;
    }
    inStep(() => runEncoders(parts));
    const { ports, bottlenecks } = inStep(() => portsOf(placement.ports, factors, own));
    placement.withdraw();
    isTaken = true;
    const held = { linear, tables, norms, ports, bottlenecks, owned };
    freeUnused(adapter, placement, held);
    return held;
  } catch (cause) {
    if (cause instanceof NotHeld) return cause.message;
    throw cause;
  } finally {
    if (!isTaken) for (const tensor of owned) tensor.dispose();
  }
}

/** Every tensor of the adapter that was trained, the task's head and adapters within it included; each once. */
export const parametersOf = ({ parts, head }: AttachedAdapter): readonly Tensor[] => {
  const nested = parts.flatMap((part) => [...(part.nested?.values() ?? [])]);
  const all = [...parts, ...nested].flatMap(({ parameters }) => [...parameters.values()]);
  return [...new Set([...all, ...head.values()])];
};

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

function sourcesOf({ wrappers, copies, baseChanges }: AdapterPlacement, own: Own) {
  const sources = new Map<string, LinearSource>();
  const tables = new Map<string, { module?: Embedding; wrappers: TableWrapper[] }>();
  const norms = new Map<string, LayerNorm | RmsNorm>();
  const linearAt = (path: string) => entryAt(sources, path, () => ({ updates: [] }));
  const tableAt = (path: string) => entryAt(tables, path, () => ({ wrappers: [] }));

  for (const { path, copy } of copies.flatMap(({ modules }) => modules)) {
    if (copy instanceof Linear) linearAt(path).module = copy;
    else if (copy instanceof Embedding) tableAt(path).module = copy;
    else if (copy instanceof LayerNorm || copy instanceof RmsNorm) norms.set(path, copy);
    else throw new NotHeld(`'${path}' is trained whole, and is no layer that banks know`);
  }
  for (const { path, module, original, copy } of copies.flatMap(({ biases }) => biases)) {
    if (sources.has(path) || norms.has(path)) throw new NotHeld(`'${path}' is trained whole, and its bias once more`);
    if (module instanceof Linear) linearAt(path).updates.push(() => ({ shift: ops.sub(copy, original) }));
    else if (module instanceof LayerNorm) norms.set(path, new LayerNorm(module.weight, own(copy), module.eps));
    else throw new NotHeld(`the bias of '${path}' is trained, and it is no layer that banks know`);
  }
  for (const { path, change } of baseChanges) {
    const update = change.rowUpdate?.();
    if (!update) throw new NotHeld(`it changes the base's weight of '${path}'`);
    linearAt(path).updates.push(() => update);
  }
  for (const { path, wrapper } of wrappers) {
    if (wrapper instanceof TableWrapper) tableAt(path).wrappers.push(wrapper);
    else linearAt(path).updates.push(() => updateOf(path, wrapper));
  }
  return { sources, tables, norms };
}

function updateOf(path: string, wrapper: Module): RowUpdate {
  const update = wrapper instanceof LinearWrapper ? wrapper.rowUpdate() : undefined;
  if (update) return update;
  throw new NotHeld(`its change of '${path}' has no form for some rows of a batch only`);
}

function entryAt<E>(entries: Map<string, E>, path: string, make: () => E): E {
  const entry = entries.get(path) ?? make();
  entries.set(path, entry);
  return entry;
}

/** Takes the bottlenecks out of the ports of an adapter that has one stack of them, where they can be said as numbers. */
function portsOf(ports: readonly PlacedPort[], factors: FactorType, own: Own) {
  const bottlenecks = new Map<string, HeldBottleneck>();
  const [port, another] = ports.filter(({ afterAttention, afterMlp }) => afterAttention ?? afterMlp);
  const plain = another ? undefined : port?.bottlenecks?.();
  if (!port || !plain) return { ports, bottlenecks };
  for (const [key, { input, down, up, f, scaling }] of plain) {
    bottlenecks.set(key, {
      ...{ input, f, scaling },
      a: own(inFactorType(down[0], factors)),
      aBias: own(down[1]),
      b: own(inFactorType(ops.t(up[0]), factors)),
      bBias: own(up[1]),
    });
  }
  for (const { down, up } of plain.values()) for (const tensor of [...down, ...up]) tensor.dispose();
  const { afterAttention: _, afterMlp: __, ...rest } = port;
  return { ports: ports.map((each) => (each === port ? rest : each)), bottlenecks };
}

/** Frees what the adapter has and banks do not compute with: the tensors of its linear layers, and what only training needs. */
function freeUnused(adapter: AttachedAdapter, { wrappers }: AdapterPlacement, { linear }: HeldAdapter): void {
  const tensorsOf = (module: Module) => Object.values(module).filter((value) => value instanceof Tensor);
  const isUsed = ({ path, wrapper }: AdapterPlacement['wrappers'][number]) =>
    wrapper instanceof TableWrapper || linear.get(path)?.updates.some(({ after }) => after);
  const used = new Set(wrappers.filter(isUsed).flatMap(({ wrapper }) => tensorsOf(wrapper)));
  for (const { wrapper } of wrappers) for (const tensor of tensorsOf(wrapper)) if (!used.has(tensor)) tensor.dispose();
  for (const { state } of adapter.parts) for (const tensor of state?.values() ?? []) tensor.dispose();
  for (const tensor of parametersOf(adapter)) if (!tensor.disposed) tensor.requiresGrad = false;
}

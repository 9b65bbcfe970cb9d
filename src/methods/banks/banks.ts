import { GraftError, type Steps } from '../../base/index.ts';
import { type AdapterBanks, type LinearLayer, type Model, type Module, moduleAt } from '../../nn/index.ts';
import { detachFromScopes, noGrad, ops, type Tensor } from '../../tensor/index.ts';
import type { AttachedAdapter } from '../compose.ts';
import type { RowUpdate, Table } from '../shared/index.ts';
import { type Bank, bankAt, takeOff } from './bank.ts';
import { LinearBank, type LinearEntry } from './linear-bank.ts';
import type { FactorType } from './linear-entry.ts';
import { NormBank } from './norm-bank.ts';
import { PortBank } from './port-bank.ts';
import { TableBank } from './table-bank.ts';
import { type HeldAdapter, parametersOf, takeOver } from './takeover.ts';

/** One of several adapters whose weighted sum a row uses. */
export interface MixedAdapter {
  /** Its number. */
  readonly adapter: number;
  /** What its update is multiplied by. */
  readonly weight: number;
}

interface Resident extends HeldAdapter {
  /** The adapter that was taken over; a mixture has none. */
  readonly adapter?: AttachedAdapter;
  /** The adapters that a mixture consists of. */
  readonly members: readonly Resident[];
  /** Mixtures that compute with its tensors. */
  mixtures: number;
  /** Its number is free again. */
  removed: boolean;
}

/**
 * The adapters of a model that may share a batch. Each module that adapters change, and the model's ports, have one bank, which holds
 * what every adapter does there under the adapter's number; rows say which number they use (`PackedTokens.adapters`). Adding and
 * removing an adapter touches its own modules only.
 */
export class Banks implements AdapterBanks, Disposable {
  readonly #model: Model;
  readonly #residents = new Map<number, Resident>();
  readonly #portBank: PortBank;
  readonly #removePort: () => void;

  /** Makes banks without adapters on a model, which has one of them at most. */
  constructor(model: Model) {
    this.#model = model;
    this.#portBank = new PortBank(model);
    this.#removePort = model.ports.add(this.#portBank);
  }

  /** Whether rows of the adapter with this number may share a pass with rows of others; 0, the base alone, always may. */
  holds(adapter: number): boolean {
    return adapter === 0 || this.#residents.has(adapter);
  }

  /** Bytes of the tensors of an adapter here; of a mixture, those that its members do not have. */
  bytesOf(adapter: number): number {
    const { owned, adapter: attached } = this.#residents.get(adapter)!;
    const tensors = [...owned, ...(attached ? parametersOf(attached) : [])];
    return tensors.reduce((sum, tensor) => sum + (tensor.disposed ? 0 : tensor.nbytes), 0);
  }

  /**
   * Takes an adapter over that is attached and enabled, and off the model's own chain; rows reach it by the number from then on. A step
   * is a layer.
   * @param factors the type in which factors of low rank are held; it must be able to hold their values
   * @returns why no bank can hold it, where that is so; it is then as it was
   * @throws GraftError 'usage' for a number that is taken
   */
  *add(number: number, adapter: AttachedAdapter, factors: FactorType = 'float32'): Steps<string | undefined> {
    this.#requireFree(number);
    // Layers are asked what they make of an input without any rows of a batch.
    const held = yield* takeOver(adapter, factors, () => this.#model.ports.selectRuns());
    if (typeof held === 'string') return held;
    this.#place(number, { ...held, adapter, members: [], mixtures: 0, removed: false });
    return undefined;
  }

  /**
   * Adds the weighted sum of LoRA adapters under a number of its own. It computes with their tensors, which stay in memory as long as
   * it does.
   * @throws GraftError 'usage' for a number that is taken or not there, and for adapters that do more than add to linear layers
   */
  mix(number: number, mixed: readonly MixedAdapter[]): void {
    this.#requireFree(number);
    const members = mixed.map(({ adapter }) => this.#lowRankResident(adapter));
    const linear = new Map<string, LinearEntry>();
    const owned: Tensor[] = [];
    members.forEach((member, i) => {
      for (const [path, { updates }] of member.linear) {
        const weighted = updates.map((update) => weightedUpdate(update, mixed[i]!.weight, owned));
        linear.set(path, { updates: joined([...(linear.get(path)?.updates ?? []), ...weighted]) });
      }
    });
    for (const member of members) member.mixtures++;
    const nothing = { tables: new Map(), norms: new Map(), ports: [], bottlenecks: new Map() };
    this.#place(number, { ...nothing, linear, owned, members, mixtures: 0, removed: false });
  }

  /** Frees an adapter or a mixture. @throws GraftError 'usage' for a number that is not there */
  remove(number: number): void {
    const resident = this.#resident(number);
    const { linear, tables, norms } = resident;
    for (const path of [...linear.keys(), ...tables.keys(), ...norms.keys()]) {
      const bank = moduleAt(this.#model.root, path) as unknown as Bank<Module, unknown>;
      for (const each of banksIn(bank)) if (each.delete(number)) takeOff(this.#model.root, path, each);
    }
    this.#portBank.delete(number);
    this.#residents.delete(number);
    resident.removed = true;
    this.#freeUnused(resident);
  }

  [Symbol.dispose](): void {
    for (const number of [...this.#residents.keys()]) this.remove(number);
    this.#removePort();
  }

  #place(number: number, resident: Resident): void {
    const { root, ports } = this.#model;
    const linearBank = (base: Module) => new LinearBank(base as unknown as LinearLayer, ports);
    const tableBank = (base: Module) => new TableBank(base as unknown as Table, ports);
    const normBank = (base: Module) => new NormBank(base as never, ports);
    for (const [path, entry] of resident.linear) bankAt(root, path, LinearBank, linearBank).set(number, entry);
    for (const [path, entry] of resident.tables) bankAt(root, path, TableBank, tableBank).set(number, entry);
    for (const [path, entry] of resident.norms) bankAt(root, path, NormBank, normBank).set(number, entry);
    const { ports: own, bottlenecks } = resident;
    if (own.length > 0) this.#portBank.set(number, own, bottlenecks);
    this.#residents.set(number, resident);
  }

  #freeUnused(resident: Resident): void {
    if (!resident.removed || resident.mixtures > 0) return;
    for (const tensor of resident.owned) tensor.dispose();
    resident.adapter?.detach();
    for (const member of resident.members) {
      member.mixtures--;
      this.#freeUnused(member);
    }
  }

  #resident(number: number): Resident {
    const resident = this.#residents.get(number);
    if (resident) return resident;
    throw new GraftError('usage', `no adapter has the number ${number}`, { place: 'adapter' });
  }

  /** Why an adapter cannot be mixed; undefined where it can. @throws GraftError 'usage' for a number that is not there */
  whyNotMixed(number: number): string | undefined {
    const { linear, tables, norms, ports } = this.#resident(number);
    const adds = [...linear.values()].every(
      ({ module, inputGain, updates }) => !module && !inputGain && updates.every(({ gain, after }) => !gain && !after),
    );
    if (adds && tables.size === 0 && norms.size === 0 && ports.length === 0) return undefined;
    return 'it does more than add updates of low rank to linear layers';
  }

  #lowRankResident(number: number): Resident {
    const reason = this.whyNotMixed(number);
    if (reason === undefined) return this.#resident(number);
    throw new GraftError('usage', `the adapter with the number ${number} cannot be mixed: ${reason}`, {
      place: 'adapters',
      hint: 'Mix LoRA adapters without DoRA, trained modules, embeddings and heads',
    });
  }

  #requireFree(number: number): void {
    if (number > 0 && Number.isInteger(number) && !this.#residents.has(number)) return;
    throw new GraftError('usage', `${number} is not the number of a new adapter`, {
      place: 'adapter',
      hint: 'Numbers are whole, positive, and each has one adapter',
    });
  }
}

/** The banks among the modules at a path, from the outermost on. */
function banksIn(outer: Module): Bank<Module, unknown>[] {
  const banks: Bank<Module, unknown>[] = [];
  for (let module: Module | undefined = outer; module; module = (module as { base_layer?: Module }).base_layer)
    if (module instanceof LinearBank || module instanceof TableBank || module instanceof NormBank)
      banks.push(module as unknown as Bank<Module, unknown>);
  return banks;
}

/** @param owned gets the tensors that are made */
function weightedUpdate({ lowRank, shift }: RowUpdate, weight: number, owned: Tensor[]): RowUpdate {
  const weightedShift = shift && noGrad(() => detachFromScopes(ops.mulScalar(shift, weight)));
  if (weightedShift) owned.push(weightedShift);
  return {
    ...(lowRank && { lowRank: lowRank.map((factors) => ({ ...factors, scaling: factors.scaling * weight })) }),
    ...(weightedShift && { shift: weightedShift }),
  };
}

/** Returns updates that only add, with those of low rank as one. */
const joined = (updates: readonly RowUpdate[]): RowUpdate[] => [
  { lowRank: updates.flatMap((update) => update.lowRank ?? []) },
  ...updates.flatMap(({ shift }) => (shift ? [{ shift }] : [])),
];

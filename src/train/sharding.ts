/** How the trained parameters of a run are divided among its processes: whose optimizer updates which, and what they exchange for it. */
import {
  buckets,
  byOwner,
  concatenated,
  type Group,
  oneProcess,
  type Piece,
  parts,
  size,
  wholePiece,
} from '../distributed/index.ts';
import type { Gates } from '../nn/index.ts';
import { gradientNorm } from '../optim/index.ts';
import { detachFromScopes, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import type { Stage } from './cluster-plan.ts';
import { GatheredBlocks, type GatheredParts, partsOf } from './gathered-blocks.ts';
import { GradientsToOwners } from './gradients-to-owners.ts';
import { ownersOf } from './owners.ts';

/**
 * Which parameters a process updates. Stage 0: every process all of them. Stage 1 and above (ZeRO, Rajbhandari et al. 2020): each process
 * some, by whole parameters, so that only it keeps the state of its optimizer for them. Stage 2: and only it keeps their gradients. Stage 3:
 * of a base that is trained, it keeps an equal part of the numbers of each block, and only these weights too; what methods add, which is
 * small, is as in stage 1.
 */
export interface Sharding {
  /** The processes. */
  readonly group: Group;
  /** The parameters that this process updates, or its parts of them. */
  readonly owned: ReadonlyMap<string, Tensor>;
  /** Where the parts are that are not whole parameters, by key. */
  readonly parts: ReadonlyMap<string, PartOfParameter>;
  /** The parameters that every process keeps whole. */
  readonly everywhere: ReadonlyMap<string, Tensor>;
  /** What this process keeps of all parameters. */
  readonly kept: ReadonlyMap<string, Tensor>;
  /** Whether some parameters are at their owners only (stage 3). */
  readonly isBaseShared: boolean;
  /** What parts of the model run in; undefined: their weights are here. */
  readonly gates?: Gates;
  /**
   * Runs a backward pass of this process, or takes part in one that only other processes have. Every process calls it equally often in a step.
   * @param run undefined: this process has none
   */
  during(run: (() => void) | undefined): void;
  /** As `during`, where no block of the model takes part: of a term that depends on parameters alone. */
  besides(run: (() => void) | undefined): void;
  /** As `during`, of a forward pass alone. */
  measuring(run: (() => void) | undefined): void;
  /**
   * Runs `act` on rank 0, which asks for a tensor of the model before it reads it. Every process has to call it.
   */
  whole(act: (present: (tensor: Tensor) => void) => void): void;
  /**
   * Adds up the gradients of all processes: afterwards each parameter that has one on any process has the sum at its owner. One that has
   * none anywhere keeps having none, so that the optimizer passes it over.
   */
  sumGradients(): void;
  /** The 2-norm of all gradients, of those that the processes own. */
  norm(own: number): number;
  /** The 2-norm of the gradients of these parameters together, whoever owns them; undefined where none has one. */
  gradNorm(keys: Iterable<string>): number | undefined;
  /** Gives every process the parameters that their owners have updated. */
  shareUpdates(): void;
}

/** The place of consecutive numbers in the parameter that they are a part of. */
export interface PartOfParameter {
  /** The shape of the parameter. */
  readonly shape: readonly number[];
  /** The first of the numbers. */
  readonly from: number;
}

/** The 2-norm of the gradients that these parameters have here; undefined where none has one. */
const normOf = (parameters: ReadonlyMap<string, Tensor>, keys: Iterable<string>): number | undefined =>
  gradientNorm([...keys].map((key) => parameters.get(key)).filter((parameter) => parameter !== undefined));

/** One process has every gradient, and updates every parameter. */
export const unsharded = (parameters: ReadonlyMap<string, Tensor>): Sharding => ({
  group: oneProcess,
  owned: parameters,
  parts: new Map(),
  everywhere: parameters,
  kept: parameters,
  isBaseShared: false,
  during: (run) => run?.(),
  besides: (run) => run?.(),
  measuring: (run) => run?.(),
  whole: (act) => act(() => {}),
  sumGradients() {},
  norm: (own) => own,
  gradNorm: (keys) => normOf(parameters, keys),
  shareUpdates() {},
});

/**
 * Divides parameters among processes.
 * @param stage 0: every process updates all; 1: each updates a share of them; 2: and keeps the gradients of that share only
 * @param wholeGradients whether something on every process reads the gradients after the update, such as AdaLoRA's importance. Not in stage 2
 */
export const shardingOf = (
  group: Group,
  parameters: ReadonlyMap<string, Tensor>,
  stage: 0 | 1 | 2,
  wholeGradients: boolean,
): Sharding => divided(group, parameters, stage, wholeGradients);

/** As `shardingOf`, at stage 3: the weights of the model are shared out, and those that are trained are with the processes that update them. */
export const gatheredSharding = (
  group: Group,
  parameters: ReadonlyMap<string, Tensor>,
  gathered: GatheredParts,
  wholeGradients: boolean,
): Sharding => divided(group, parameters, 3, wholeGradients, gathered);

function divided(
  group: Group,
  parameters: ReadonlyMap<string, Tensor>,
  stage: Stage,
  wholeGradients: boolean,
  gathered?: GatheredParts,
): Sharding {
  if (group.size === 1) return unsharded(parameters);
  const ofBase = new Map(gathered && partsOf(gathered).flatMap(({ unit }) => [...unit.pieces]));
  const everywhere = new Map([...parameters].filter(([, parameter]) => !ofBase.has(parameter)));
  const all = [...everywhere.values()];
  const owners = stage === 0 ? undefined : (gathered?.owners ?? ownersOf(parameters, group.size));
  const piecesOf = (parameter: Tensor): readonly Piece[] =>
    ofBase.get(parameter) ?? [wholePiece(group, parameter, owners!.get(parameter)!)];
  const pieces = owners && new Map(Array.from(parameters.values(), (parameter) => [parameter, piecesOf(parameter)]));
  const own = [...parameters].flatMap(([key, parameter]) => {
    const piece = pieces?.get(parameter)?.find((each) => each.own !== undefined);
    return piece ? [{ key, parameter, piece }] : [];
  });
  const owned = pieces ? new Map(own.map(({ key, piece }) => [key, piece.own!])) : parameters;
  const divided = own.filter(({ parameter, piece }) => piece.own !== parameter);
  const toOwners = pieces && new GradientsToOwners(group, parameters, pieces);
  const blocks = toOwners && gathered && new GatheredBlocks(group, gathered, toOwners);
  const sent = stage >= 2 ? toOwners : undefined;
  const during = (run: (() => void) | undefined) => (sent ? sent.during(run) : run?.());
  let shared: readonly Tensor[] = [];
  return {
    group,
    owned,
    parts: new Map(divided.map(({ key, parameter: { shape }, piece: { from } }) => [key, { shape, from }])),
    everywhere,
    kept: new Map([...everywhere, ...owned]),
    isBaseShared: ofBase.size > 0,
    ...(blocks
      ? {
          gates: blocks.gates,
          during: (run) => blocks.during(run, true),
          besides: (run) => run?.(),
          measuring: (run) => blocks.during(run, false),
          whole: (act) => blocks.whole(act),
        }
      : {
          during,
          besides: during,
          measuring: (run) => run?.(),
          whole(act) {
            if (group.rank === 0) act(() => {});
          },
        }),
    sumGradients() {
      const ofOwners = sent?.finish();
      if (ofOwners && !blocks) {
        shared = ofOwners;
        return;
      }
      shared = [];
      if (all.length === 0) return;
      noGrad(() => {
        shared = withGradients(group, all);
        if (toOwners && !wholeGradients) toOwners.sum(shared);
        else for (const bucket of buckets(shared)) sumOnAll(group, bucket);
      });
    },
    norm(own) {
      if (!owners) return own;
      return Math.sqrt(group.agree({ squares: own ** 2 }).squares.reduce((sum, squares) => sum + squares));
    },
    gradNorm(keys) {
      const own = normOf(owned, keys);
      if (!owners) return own;
      const { squares, has } = group.agree({ squares: (own ?? 0) ** 2, has: own === undefined ? 0 : 1 });
      return has.some((some) => some > 0) ? Math.sqrt(squares.reduce((sum, each) => sum + each)) : undefined;
    },
    shareUpdates() {
      if (!owners) return;
      noGrad(() => fromOwners(group, shared, owners));
    },
  };
}

/** The parameters that have a gradient on any process. */
function withGradients(group: Group, all: readonly Tensor[]): Tensor[] {
  using _ = scope();
  const present = Tensor.from(Float32Array.from(all, ({ grad }) => (grad ? 1 : 0)));
  group.sum(present);
  const counts = present.data();
  return all.filter((_, i) => Number(counts[i]) > 0);
}

function sumOnAll(group: Group, bucket: readonly Tensor[]): void {
  using _ = scope();
  for (const parameter of bucket) parameter.grad ??= ops.zeros(parameter.shape, { dtype: parameter.dtype });
  const sum = concatenated(bucket.map((parameter) => parameter.grad!));
  group.sum(sum);
  for (const [i, part] of parts(sum, bucket).entries()) ops.copy_(bucket[i]!.grad!, part);
}

/** Gives every process parameters as their owners have them, of two owners at a time. */
function fromOwners(group: Group, parameters: readonly Tensor[], owners: ReadonlyMap<Tensor, number>): void {
  const ofOwners = byOwner(group, parameters, owners).map((own) => buckets(own));
  const rounds = Math.max(...ofOwners.map(({ length }) => length));
  const underWay: (() => void)[] = [];
  for (let round = 0; round < rounds; round++)
    for (const [owner, { [round]: bucket }] of ofOwners.entries()) {
      if (!bucket) continue;
      if (underWay.length === 2) underWay.shift()!();
      underWay.push(beginUpdate(group, bucket, owner));
    }
  for (const finish of underWay) finish();
}

/** Begins to send the parameters of an owner to all. @returns what waits for its end */
function beginUpdate(group: Group, bucket: readonly Tensor[], owner: number): () => void {
  const isOwn = owner === group.rank;
  using s = scope();
  const numbers = isOwn || bucket.length === 1 ? concatenated(bucket) : Tensor.empty([size(bucket)]);
  detachFromScopes(s.keep(numbers));
  const finish = group.beginBroadcast(numbers, owner);
  return () => {
    using _ = scope();
    finish();
    if (!isOwn) for (const [i, part] of parts(numbers, bucket).entries()) ops.copy_(ops.detach(bucket[i]!), part);
    numbers.dispose();
  };
}

/**
 * Single rows of an embedding's table trained in their place (PEFT's `trainable_token_indices`, tuners/trainable_tokens): for
 * tokens that are new or that get a new meaning. An output projection that shares the table shares the rows; one
 * of its own may be named too.
 */
import { GraftError, nearest } from '../../base/index.ts';
import {
  Embedding,
  type Linear,
  type LinearLayer,
  type Model,
  type Module,
  moduleAt,
  namedModules,
  replaceModule,
  unwrapped,
} from '../../nn/index.ts';
import { ops, Tensor } from '../../tensor/index.ts';
import {
  type LayerWeight,
  LinearWrapper,
  type Switch,
  type Table,
  TableWrapper,
  trainable,
  type Wrapper,
} from '../shared/index.ts';

const indexOf = (numbers: readonly number[]) => Tensor.from(BigInt64Array.from(numbers, BigInt));

const replaced = ({ weight, bias }: LayerWeight, tokens: readonly number[], values: Tensor): LayerWeight => ({
  weight: ops.indexCopy(weight, 0, indexOf(tokens), values),
  format: -1,
  bias,
});

class TableRows extends TableWrapper {
  readonly tokens: readonly number[];
  /** [n, C] */
  readonly trainable_tokens_delta: Tensor;

  constructor(base: Table, tokens: readonly number[], values: Tensor, state: Switch) {
    super(base, state);
    this.tokens = tokens;
    this.trainable_tokens_delta = values;
  }

  protected adapted(base: Tensor, ids: Tensor): Tensor {
    const places: number[] = [];
    const rows: number[] = [];
    (ids.data() as BigInt64Array).forEach((id, place) => {
      const row = this.tokens.indexOf(Number(id));
      if (row < 0) return;
      places.push(place);
      rows.push(row);
    });
    // Also where no token of them occurs: a parameter with a gradient of zero is not one without.
    return ops.indexCopy(base, 0, indexOf(places), ops.indexSelect(this.trainable_tokens_delta, 0, indexOf(rows)));
  }

  fold(now: LayerWeight, _own: Tensor): LayerWeight {
    return replaced(now, this.tokens, this.trainable_tokens_delta);
  }
}

/** An output projection whose rows for some tokens are trained: these tokens' logits come from them. */
class HeadRows extends LinearWrapper {
  readonly tokens: readonly number[];
  readonly trainable_tokens_delta: Tensor;

  constructor(base: LinearLayer, tokens: readonly number[], values: Tensor, state: Switch) {
    super(base, state);
    this.tokens = tokens;
    this.trainable_tokens_delta = values;
  }

  protected adapted(x: Tensor): Tensor {
    const index = indexOf(this.tokens);
    const { bias } = unwrapped(this) as Linear;
    const own = ops.linear(x, this.trainable_tokens_delta, bias ? ops.indexSelect(bias, 0, index) : null);
    return ops.indexCopy(this.base_layer.forward(x), 1, index, own);
  }

  fold(now: LayerWeight, _own: Tensor): LayerWeight {
    return replaced(now, this.tokens, this.trainable_tokens_delta);
  }
}

/** Path of the head where it shares the embeddings' table. */
export function tiedHead({ root, sites }: Model): string | undefined {
  if (!sites.head) return undefined;
  const [table, head] = [sites.embeddings, sites.head].map((path) => unwrapped(moduleAt(root, path)) as Linear);
  return table!.weight === head!.weight ? sites.head : undefined;
}

export type TokenRows = readonly number[] | Readonly<Record<string, readonly number[]>>;

interface Named {
  readonly path: string;
  readonly tokens: readonly number[];
}

/** The tables that are named, with their tokens. @throws GraftError 'usage' */
export function tokenTables(model: Model, wanted: TokenRows): Named[] {
  const place = 'trainable_token_indices';
  const { embeddings, head } = model.sites;
  const rowed = (path: string, module: Module) =>
    unwrapped(module) instanceof Embedding || (path === head && model.task.labels.length === 0);
  const tables = [...namedModules(model.root)].filter(([path, module]) => rowed(path, module));
  const tied = tiedHead(model);
  const given = Array.isArray(wanted) ? { [embeddings]: wanted } : wanted;
  const byName: [string, readonly number[]][] = Object.entries(given);
  const named = byName.map(([name, tokens]): Named => {
    const found = tables.find(([path]) => path === name || path.endsWith(`.${name}`));
    if (!found) {
      const last = tables.map(([path]) => path.split('.').at(-1)!);
      const hint =
        last.length > 0
          ? `Did you mean '${nearest(name, last) ?? last[0]}'?`
          : 'This model reads no tokens: leave the field out';
      throw new GraftError(
        'usage',
        `trainable_token_indices names '${name}', which is no embedding and no output head`,
        { place, hint },
      );
    }
    const [path, module] = found as unknown as [string, Table | LinearLayer];
    const rows = 'rows' in module ? module.rows : module.outFeatures;
    const outside = tokens.find((token) => token >= rows);
    if (outside !== undefined)
      throw new GraftError('usage', `token ${outside} is beyond the ${rows} rows of ${path}`, { place });
    if (new Set(tokens).size < tokens.length)
      throw new GraftError('usage', `a token of '${name}' is named twice`, { place });
    return { path, tokens };
  });
  const ofHead = named.find(({ path }) => path === tied);
  if (!ofHead) return named;
  // As PEFT has it: the two ends of one table are named with the same tokens, and have the same rows.
  const ofTable = named.find(({ path }) => path === embeddings);
  if (ofTable?.tokens.join() !== ofHead.tokens.join()) {
    throw new GraftError('usage', `'${tied}' shares the table of '${embeddings}', and other tokens are named for it`, {
      place,
      hint: `Name them for '${embeddings}' only`,
    });
  }
  return named.filter((one) => one !== ofHead);
}

/** Puts the rows on the model. */
export function trainTokenRows(model: Model, tables: readonly Named[], state: Switch) {
  const parameters = new Map<string, Tensor>();
  const wrappers: { path: string; wrapper: Wrapper }[] = [];
  for (const { path, tokens } of tables) {
    const module = moduleAt(model.root, path);
    const values = trainable(() => {
      // As the layer itself has them, whatever other adapters make of them.
      const own = unwrapped(module) as Embedding | Linear;
      const rows =
        own instanceof Embedding
          ? own.forward(indexOf(tokens))
          : ops.indexSelect(own.denseWeight(), 0, indexOf(tokens));
      return ops.clone(rows);
    });
    parameters.set(`${path}.token_adapter.trainable_tokens_delta`, values);
    if (!(unwrapped(module) instanceof Embedding)) {
      wrappers.push({ path, wrapper: new HeadRows(module as unknown as LinearLayer, tokens, values, state) });
      continue;
    }
    wrappers.push({ path, wrapper: new TableRows(module as unknown as Table, tokens, values, state) });
    const head = path === model.sites.embeddings ? tiedHead(model) : undefined;
    if (!head) continue;
    const layer = moduleAt(model.root, head) as LinearLayer;
    wrappers.push({ path: head, wrapper: new HeadRows(layer, tokens, values, state) });
  }
  for (const { path, wrapper } of wrappers) replaceModule(model.root, path, wrapper);
  return { parameters, wrappers };
}

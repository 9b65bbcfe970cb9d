/**
 * Trained rows of an embedding table for single tokens, such as new ones (PEFT's `trainable_token_indices`,
 * tuners/trainable_tokens). An output projection that shares the table shares the rows; one with its own table may be named too.
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
  type RowUpdate,
  type Switch,
  type Table,
  TableWrapper,
  trainable,
  type Wrapper,
} from '../shared/index.ts';

const indexTensor = (indices: readonly number[]) => Tensor.from(BigInt64Array.from(indices, BigInt));

const withRows = ({ weight, bias }: LayerWeight, tokens: readonly number[], rows: Tensor): LayerWeight => ({
  weight: ops.indexCopy(weight, 0, indexTensor(tokens), rows),
  format: -1,
  bias,
});

/** An embedding with trained rows for some tokens. */
class EmbeddingRows extends TableWrapper {
  readonly tokens: readonly number[];
  /** The trained rows [number of tokens, C]. */
  readonly trainable_tokens_delta: Tensor;

  constructor(base: Table, tokens: readonly number[], rows: Tensor, state: Switch) {
    super(base, state);
    this.tokens = tokens;
    this.trainable_tokens_delta = rows;
  }

  adapted(vectors: Tensor, ids: Tensor): Tensor {
    const matches = ops.eq(ops.unsqueeze(ids, 1), ops.unsqueeze(indexTensor(this.tokens), 0)); // [N, number of tokens]
    const found = ops.toCopy(matches, { dtype: 'uint8' });
    // Also where none of the tokens occurs: their rows then have a gradient of zero, and not none.
    const trained = ops.indexSelect(this.trainable_tokens_delta, 0, ops.argmax(found, 1));
    return ops.where(ops.gtScalar(ops.amax(found, [1], true), 0), trained, vectors);
  }

  fold(current: LayerWeight, _base: Tensor): LayerWeight {
    return withRows(current, this.tokens, this.trainable_tokens_delta);
  }
}

/** An output projection with trained rows for some tokens: these tokens' logits come from them. */
class HeadRows extends LinearWrapper {
  readonly tokens: readonly number[];
  readonly trainable_tokens_delta: Tensor;

  constructor(base: LinearLayer, tokens: readonly number[], rows: Tensor, state: Switch) {
    super(base, state);
    this.tokens = tokens;
    this.trainable_tokens_delta = rows;
  }

  /** The logits y [N, V] of the base with those of the tokens. */
  #withTokens(y: Tensor, x: Tensor): Tensor {
    const index = indexTensor(this.tokens);
    const { bias } = unwrapped(this) as Linear;
    const logits = ops.linear(x, this.trainable_tokens_delta, bias ? ops.indexSelect(bias, 0, index) : null);
    return ops.indexCopy(y, 1, index, logits);
  }

  protected adapted(x: Tensor): Tensor {
    return this.#withTokens(this.base_layer.forward(x), x);
  }

  override rowUpdate(): RowUpdate {
    return { after: (y, x) => this.#withTokens(y, x) };
  }

  fold(current: LayerWeight, _base: Tensor): LayerWeight {
    return withRows(current, this.tokens, this.trainable_tokens_delta);
  }
}

/** Returns the path of the head where it shares the embeddings' table. */
export function tiedHead({ root, sites }: Model): string | undefined {
  if (!sites.head) return undefined;
  const [table, head] = [sites.embeddings, sites.head].map((path) => unwrapped(moduleAt(root, path)) as Linear);
  return table!.weight === head!.weight ? sites.head : undefined;
}

/** Token ids of the embeddings, or of several tables by the end of their paths. */
export type TokenRows = readonly number[] | Readonly<Record<string, readonly number[]>>;

/** A table by its path, and the tokens whose rows are trained. */
interface TableTokens {
  readonly path: string;
  readonly tokens: readonly number[];
}

/** Returns the tables and tokens that `trainable_token_indices` names. @throws GraftError 'usage' for unknown names or tokens */
export function tokenTables(model: Model, tokenRows: TokenRows): TableTokens[] {
  const place = 'trainable_token_indices';
  if (!Array.isArray(tokenRows) && Object.keys(tokenRows).length === 0) return [];
  const { embeddings, head } = model.sites;
  const isTable = (path: string, module: Module) =>
    unwrapped(module) instanceof Embedding || (path === head && model.task.labels.length === 0);
  const tables = [...namedModules(model.root)].filter(([path, module]) => isTable(path, module));
  const tied = tiedHead(model);
  const byName = Array.isArray(tokenRows) ? { [embeddings]: tokenRows } : tokenRows;
  const selected = Object.entries(byName as Record<string, readonly number[]>).map(([name, tokens]): TableTokens => {
    const table = tables.find(([path]) => path === name || path.endsWith(`.${name}`));
    if (!table) {
      const names = tables.map(([path]) => path.split('.').at(-1)!);
      const hint =
        names.length > 0
          ? `Did you mean '${nearest(name, names) ?? names[0]}'?`
          : 'This model reads no tokens: leave the field out';
      throw new GraftError(
        'usage',
        `trainable_token_indices names '${name}', which is neither an embedding nor an output head`,
        { place, hint },
      );
    }
    const [path, module] = table as unknown as [string, Table | LinearLayer];
    const rows = 'rows' in module ? module.rows : module.outFeatures;
    const outside = tokens.find((token) => token >= rows);
    if (outside !== undefined)
      throw new GraftError('usage', `token ${outside} is outside the ${rows} rows of '${path}'`, { place });
    if (new Set(tokens).size < tokens.length)
      throw new GraftError('usage', `a token of '${name}' is named twice`, { place });
    return { path, tokens };
  });
  const ofHead = selected.find(({ path }) => path === tied);
  if (!ofHead) return selected;
  // As in PEFT: a tied head may be named with the embeddings' tokens only, and then shares their rows.
  const ofEmbeddings = selected.find(({ path }) => path === embeddings);
  if (ofEmbeddings?.tokens.join() !== ofHead.tokens.join()) {
    throw new GraftError('usage', `'${tied}' shares the table of '${embeddings}', but names other tokens`, {
      place,
      hint: `Name the tokens of '${embeddings}' only`,
    });
  }
  return selected.filter((table) => table !== ofHead);
}

/** Puts wrappers with trained rows on the model; the rows begin as the base has them, without other adapters. */
export function trainTokenRows(model: Model, tables: readonly TableTokens[], state: Switch) {
  const parameters = new Map<string, Tensor>();
  const wrappers: { path: string; wrapper: Wrapper }[] = [];
  for (const { path, tokens } of tables) {
    const module = moduleAt(model.root, path);
    const rows = trainable(() => {
      const layer = unwrapped(module) as Embedding | Linear;
      const ids = indexTensor(tokens);
      return ops.clone(layer instanceof Embedding ? layer.forward(ids) : ops.indexSelect(layer.denseWeight(), 0, ids));
    });
    parameters.set(`${path}.token_adapter.trainable_tokens_delta`, rows);
    if (!(unwrapped(module) instanceof Embedding)) {
      wrappers.push({ path, wrapper: new HeadRows(module as unknown as LinearLayer, tokens, rows, state) });
      continue;
    }
    wrappers.push({ path, wrapper: new EmbeddingRows(module as unknown as Table, tokens, rows, state) });
    const head = path === model.sites.embeddings ? tiedHead(model) : undefined;
    if (!head) continue;
    const layer = moduleAt(model.root, head) as LinearLayer;
    wrappers.push({ path: head, wrapper: new HeadRows(layer, tokens, rows, state) });
  }
  for (const { path, wrapper } of wrappers) replaceModule(model.root, path, wrapper);
  const replaces = new Set(tables.flatMap(({ path, tokens }) => tokens.map((token) => `${path}.weight, row ${token}`)));
  return { parameters, wrappers, replaces };
}

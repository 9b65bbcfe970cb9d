/**
 * Tables of the base that an adapter's file holds whole beside its updates, as PEFT writes them with `save_embedding_layers` or after
 * tokens were added (peft/utils/save_and_load.py).
 */
import type { WeightSource } from '../../io/index.ts';

/** What precedes the base model's path in the keys of an adapter. */
export const keyPrefix = 'base_model.model.';

/** Last parts of the paths of token embeddings and output layers. */
const tableNames = ['embed_tokens', 'lm_head', 'wte', 'word_embeddings', 'embed_in', 'embed_out', 'tok_embeddings'];

/** What every name of a table has: of the hundreds in a file, few need a closer look. */
const mayBeTable = new RegExp(tableNames.join('|'));

/** A table of the vocabulary in an adapter's file. */
export interface StoredTable {
  readonly path: string;
  /** Tokens that it has a row for. */
  readonly rows: number;
  /** Whether it is the base's own, under an update of it. */
  readonly isUpdated: boolean;
}

/** The tables of the vocabulary that a file holds. */
export function tablesIn(source: WeightSource): StoredTable[] {
  return [...source.entries.values()].flatMap(({ name, shape }) => {
    if (!mayBeTable.test(name)) return [];
    const [, path, base] = /^base_model\.model\.(.+?)(\.base_layer)?\.weight$/.exec(name) ?? [];
    const isTable = path !== undefined && shape.length === 2 && tableNames.includes(path.split('.').at(-1)!);
    return isTable ? [{ path, rows: shape[0]!, isUpdated: base !== undefined }] : [];
  });
}

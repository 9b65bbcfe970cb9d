import type { Embedding } from '../../nn/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import type { Table, TableWrapper } from '../shared/index.ts';
import { Bank, bySegments } from './bank.ts';

/** What one adapter does at an embedding. */
export interface TableEntry {
  /** The table that stands for the base's, where the adapter has its own copy. */
  readonly module?: Embedding;
  /** The method's wrappers, which are not on the model; one after the other. */
  readonly wrappers: readonly TableWrapper[];
}

/** The adapters at an embedding: one lookup in the base's table, then each run's own change of its vectors. */
export class TableBank extends Bank<Table, TableEntry> {
  get width(): number {
    return this.base_layer.width;
  }

  get rows(): number {
    return this.base_layer.rows;
  }

  /** ids int64 [N] → [N, C] */
  forward(ids: Tensor): Tensor {
    const active = this.active(ids.size(0));
    if (active.length === 0) return this.base_layer.forward(ids);
    const copied = active.flatMap(({ start, end, entry: { module } }) => (module ? [{ start, end, module }] : []));
    const vectors = bySegments<Pick<Table, 'forward'>>(ids.size(0), copied, this.base_layer, (table, start, n) =>
      table.forward(ops.narrow(ids, 0, start, n)),
    );
    for (const { start, end, entry } of active) {
      if (entry.wrappers.length === 0) continue;
      const [rows, rowIds] = [ops.narrow(vectors, 0, start, end - start), ops.narrow(ids, 0, start, end - start)];
      ops.copy_(
        rows,
        entry.wrappers.reduce((y, wrapper) => wrapper.adapted(y, rowIds), rows),
      );
    }
    return vectors;
  }

  plain(): Embedding | undefined {
    return this.isActive ? undefined : this.base_layer.plain();
  }

  denseWeight(): Tensor {
    return this.base_layer.denseWeight();
  }
}

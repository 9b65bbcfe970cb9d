/** Vectors that methods put in front of rows. Letters: N packed tokens, R rows, T virtual tokens, C width. */
import { ops, Tensor } from '../tensor/index.ts';
import type { PackedTokens } from './packed.ts';

/** Vectors in front of a row's embeddings. */
export interface Prompt {
  readonly length: number;
  /** Whether the vectors of a row depend on its task. */
  readonly readsTasks?: boolean;
  /** Returns [T, C], the same for all of these R rows, or [R·T, C]. */
  vectors(rows: Pick<PackedTokens, 'rowStarts' | 'tasks'>): Tensor;
}

/** Rows with their prompts in front. */
interface PromptedRows {
  /** [N + virtual tokens, C] */
  readonly x: Tensor;
  readonly types: Tensor | undefined;
  readonly rowStarts: readonly number[];
  /** Removes the virtual tokens: [N + virtual tokens, C] → [N, C]. */
  strip(x: Tensor): Tensor;
}

/** Returns those of the rows that `chosen` names, for `Prompt.vectors`. */
function rowsAmong({ rowStarts, tasks }: PackedTokens, chosen: readonly number[]) {
  const starts = [0];
  for (const r of chosen) starts.push(starts.at(-1)! + rowStarts[r + 1]! - rowStarts[r]!);
  const chosenTasks = tasks && chosen.map((r) => tasks[r]!);
  return { rowStarts: starts, ...(chosenTasks?.every((task) => task >= 0) && { tasks: chosenTasks }) };
}

/**
 * Puts prompts in front of rows.
 * @param x embeddings [N, C]
 * @param prompts for each row
 * @param readsFirstToken `strip` returns the hidden state of a row's first virtual token in the place of its own first token's
 */
export function withPrompts(
  x: Tensor,
  tokens: PackedTokens,
  prompts: readonly (readonly Prompt[])[],
  readsFirstToken: boolean,
): PromptedRows {
  /** For each prompt, its rows, and where the vectors of each are behind `x`. */
  const users = new Map<Prompt, number[]>();
  prompts.forEach((own, r) => {
    for (const prompt of own) users.set(prompt, [...(users.get(prompt) ?? []), r]);
  });
  const vectors: Tensor[] = [];
  const firsts = new Map<Prompt, { readonly first: number; readonly ofRow: number }>();
  let offset = x.size(0);
  for (const [prompt, rows] of users) {
    const block = prompt.vectors(rowsAmong(tokens, rows));
    vectors.push(block);
    firsts.set(prompt, { first: offset, ofRow: block.size(0) === prompt.length ? 0 : prompt.length });
    offset += block.size(0);
  }
  /** For each row of the result, the row of `x` and the vectors behind it that it is. */
  const sources: bigint[] = [];
  /** For each token of `x`, its row in the result. */
  const targets: bigint[] = [];
  const rowStarts = [0];
  prompts.forEach((own, r) => {
    for (const prompt of own) {
      const { first, ofRow } = firsts.get(prompt)!;
      const from = first + ofRow * users.get(prompt)!.indexOf(r);
      for (let t = 0; t < prompt.length; t++) sources.push(BigInt(from + t));
    }
    for (let n = tokens.rowStarts[r]!; n < tokens.rowStarts[r + 1]!; n++) {
      const isRead = readsFirstToken && n === tokens.rowStarts[r];
      targets.push(BigInt(isRead ? rowStarts[r]! : sources.length));
      sources.push(BigInt(n));
    }
    rowStarts.push(sources.length);
  });
  const sourceIndex = Tensor.from(BigInt64Array.from(sources));
  const targetIndex = Tensor.from(BigInt64Array.from(targets));
  const zeros = vectors.map((block) => ops.zeros([block.size(0)], { dtype: 'int64' }));
  return {
    x: ops.indexSelect(ops.cat([x, ...vectors]), 0, sourceIndex),
    types: tokens.types && ops.indexSelect(ops.cat([tokens.types, ...zeros]), 0, sourceIndex),
    rowStarts,
    strip: (hidden) => ops.indexSelect(hidden, 0, targetIndex),
  };
}

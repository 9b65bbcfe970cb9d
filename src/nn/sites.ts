/**
 * Where things attach, as data. A path may hold `*` for a layer's number. Methods ask for roles, never for a family.
 */
export interface Sites {
  /** The repeated blocks: `model.layers.*`. */
  readonly block: string;
  readonly embeddings: string;
  /** The output projection to the vocabulary, where the family has one. */
  readonly head: string | undefined;
  readonly attention: { readonly q: string; readonly k: string; readonly v: string; readonly o: string };
  /** Blocks norm the sum behind attention and MLP (BERT), not what goes into them. */
  readonly normAfter?: boolean;
  readonly mlp: { readonly gate?: string; readonly up: string; readonly down: string };
  /** What PEFT's LoRA targets when `target_modules` is not given (constants.py): last parts of paths. */
  readonly defaultTargets: readonly string[];
}

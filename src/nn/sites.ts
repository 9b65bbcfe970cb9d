/**
 * The paths of a model's modules by their role; `*` stands for a layer's number. Methods read these and so need not know the
 * family.
 */
export interface Sites {
  /** The repeated blocks: `model.layers.*`. */
  readonly block: string;
  readonly embeddings: string;
  /** The output layer of the task's head; undefined where the model has no head. */
  readonly head: string | undefined;
  /** Further output layers of the head, which are trained with it: DeiT's second one, from distillation. */
  readonly furtherHeads?: readonly string[];
  readonly attention: { readonly q: string; readonly k: string; readonly v: string; readonly o: string };
  /** Norms come after attention and MLP, on the sum with the residual stream (BERT), and not before them. */
  readonly normAfter?: boolean;
  readonly mlp: { readonly gate?: string; readonly up: string; readonly down: string };
  /** PEFT's `target_modules` of LoRA where a config has none (constants.py): last parts of paths. */
  readonly defaultTargets: readonly string[];
}

/** Returns the paths of the output layers of the task's head; none where the model has no head. */
export const headsOf = ({ head, furtherHeads = [] }: Sites): readonly string[] =>
  head === undefined ? [] : [head, ...furtherHeads];

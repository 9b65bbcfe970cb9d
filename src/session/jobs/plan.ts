import { type PlanOptions, planForRanks, type RanksPlan, type Recipe } from '../../train/index.ts';

/** Plans a recipe for many processes. */
export const plan = ({ recipe, ...options }: { readonly recipe: Recipe } & PlanOptions): Promise<RanksPlan> =>
  planForRanks(recipe, options);

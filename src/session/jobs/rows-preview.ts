import { previewRows, type Recipe, type TaskPreview } from '../../train/index.ts';

/** Makes the rows of a recipe, of each task. */
export const rowsPreview = ({ recipe }: { readonly recipe: Recipe }): Promise<TaskPreview[]> => previewRows(recipe);

export { type BlockShape, bytesPerToken, shapeOf, tokenBudget } from './budget.ts';
export { explainedMeasurement } from './diverged.ts';
export type { TrainEvent } from './events.ts';
export { parseRecipe, type Recipe, readRecipe, readYaml, recipeSchema, severalSchema } from './recipe.ts';
export { runTraining, type TrainResult } from './run.ts';
export { batchLoss, type MicroBatch, type StepResult, trainStep } from './step.ts';

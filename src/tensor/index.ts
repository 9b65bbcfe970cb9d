export { absent, give, isAbsent, takeAway } from './absent.ts';
export { checkpoint, type Gate } from './checkpoint.ts';
export { dropout } from './dropout.ts';
export { type DType, dtypes } from './dtype.ts';
export { gradEnabled, noGrad, withGrad } from './grad.ts';
export * as ops from './ops.gen.ts';
export { Generator, manualSeed, mixSeed, randomState } from './random.ts';
export { detachFromScopes, type Scope, scope, scoped } from './scope.ts';
export { Tensor, type TypedArray } from './tensor.ts';

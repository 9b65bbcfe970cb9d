export { checkpoint } from './checkpoint.ts';
export { currentDevice, type Device, freeDeviceMemory, host, onDevice, useDevice } from './device.ts';
export { dropout } from './dropout.ts';
export { type DType, dtypes } from './dtype.ts';
export { gradEnabled, noGrad, withGrad } from './grad.ts';
export * as ops from './ops.gen.ts';
export { Generator, manualSeed, mixSeed, randomState } from './random.ts';
export { detachFromScopes, type Scope, scope, scoped } from './scope.ts';
export { Tensor, type TypedArray } from './tensor.ts';

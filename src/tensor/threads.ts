/** Tensors that threads of one process share. */
import { type Binding, onStart } from '../engine/index.ts';
import { Tensor } from './tensor.ts';

let native: Binding;
onStart((binding) => {
  native = binding;
});

/** Returns the number by which another thread takes tensors with the same memory (`takeTensors`). */
export const giveTensors = (tensors: readonly Tensor[]): number =>
  native.give(Uint32Array.from(tensors, ({ id }) => id));

/** Returns the tensors that another thread gave under a number. @throws GraftError 'engine' for a number whose tensors were taken */
export const takeTensors = (number: number): Tensor[] => Array.from(native.take(number), (id) => new Tensor(id));

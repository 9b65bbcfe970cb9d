import { GraftError, nearest } from '../base/index.ts';
import { ops, type Tensor } from '../tensor/index.ts';

const geluTanh = (x: Tensor) => ops.gelu(x, { approximate: 'tanh' });

/** Under the names that `config.json` uses (transformers `activations.py`). */
const activations = {
  gelu: (x: Tensor) => ops.gelu(x),
  gelu_new: geluTanh,
  gelu_fast: geluTanh,
  gelu_pytorch_tanh: geluTanh,
  quick_gelu: (x: Tensor) => ops.mul(x, ops.sigmoid(ops.mulScalar(x, 1.702))),
  relu: ops.relu,
  silu: ops.silu,
  swish: ops.silu,
  sigmoid: ops.sigmoid,
  tanh: ops.tanh,
} as const;

type ActivationName = keyof typeof activations;

export const activationNames = Object.keys(activations) as readonly ActivationName[];

/**
 * @param place of the name, for errors; a model's loader names the config by itself
 * @throws GraftError 'input' for a name that is not known
 */
export function activationOf(name: string, place?: string): (x: Tensor) => Tensor {
  const found = activations[name as ActivationName];
  if (found) return found;
  const near = nearest(name, activationNames);
  throw new GraftError('input', `the activation '${name}' is not one of ${activationNames.join(', ')}`, {
    ...(place && { place }),
    ...(near && { hint: `Did you mean '${near}'?` }),
  });
}

import { GraftError, nearest } from '../base/index.ts';
import { ops, type Tensor } from '../tensor/index.ts';

const geluTanh = (x: Tensor) => ops.gelu(x, { approximate: 'tanh' });

/** The activations under the names that `config.json` uses (transformers `activations.py`). */
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
 * Returns the activation that `config.json` calls `name`.
 * @param place where the name stands, for the error; without it, the caller adds the place (a model's loader: the config)
 * @throws GraftError 'input' for an unknown name
 */
export function activationOf(name: string, place?: string): (x: Tensor) => Tensor {
  const activation = activations[name as ActivationName];
  if (activation) return activation;
  const near = nearest(name, activationNames);
  throw new GraftError('input', `the activation '${name}' is not one of ${activationNames.join(', ')}`, {
    ...(place && { place }),
    ...(near && { hint: `Did you mean '${near}'?` }),
  });
}

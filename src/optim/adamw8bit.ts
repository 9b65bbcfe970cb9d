/** AdamW with moments of one byte a number (arXiv 2110.02861), as bitsandbytes' AdamW8bit. */
import { z } from 'zod';
import { host, ops, scope } from '../tensor/index.ts';
import { adamw, adamwFields } from './adamw.ts';
import { blockSize, codesOf, decoded, encode } from './dynamic-codes.ts';
import { type OptimizerType, stepCount, type Trained } from './optimizer.ts';

const config = z
  .strictObject(adamwFields)
  .describe(
    'AdamW with moments in 8 bits (arXiv 2110.02861, as bitsandbytes): 2 bytes of state for each trained number, and 8 for each 256; parameters of fewer than 4,096 numbers keep 8 bytes each.',
  );

type Config = z.output<typeof config>;
type Rates = Parameters<typeof adamw.update>[1];

/** Smaller parameters keep float32 moments: bitsandbytes' `min_8bit_size`. */
const smallestInBytes = 4096;

const numbersIn = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

/** The update by a fused operator, in one pass: no moment exists in float32 beyond one block. */
export function updateFused(group: readonly Trained[], { lr, weightDecay }: Rates, settings: Config): void {
  const { beta1, beta2, eps } = settings;
  const of = (slot: string) => group.map(({ slots }) => slots[slot]!);
  ops.adamw_8bit_(
    group.map(({ parameter }) => parameter),
    group.map(({ grad }) => grad),
    of('exp_avg'),
    of('exp_avg_max'),
    of('exp_avg_sq'),
    of('exp_avg_sq_max'),
    of('step'),
    codesOf('signed'),
    codesOf('unsigned'),
    { lr, beta1, beta2, weightDecay, eps },
  );
}

/** The same update in plain ATen operators: the fused one's oracle, and its path on other devices. */
export function updateComposite(group: readonly Trained[], { lr, weightDecay }: Rates, settings: Config): void {
  const { beta1, beta2, eps } = settings;
  for (const { parameter, grad, slots } of group) {
    using _ = scope();
    const { exp_avg, exp_avg_max, exp_avg_sq, exp_avg_sq_max, step } = slots as Record<string, typeof parameter>;
    const steps = step!.item();
    const mean = decoded(exp_avg!, exp_avg_max!, 'signed');
    const square = decoded(exp_avg_sq!, exp_avg_sq_max!, 'unsigned');
    ops.lerp_(mean, grad, 1 - beta1);
    ops.lerp_(square, ops.mul(grad, grad), 1 - beta2);
    const root = ops.divScalar_(ops.sqrt(square), Math.sqrt(1 - beta2 ** steps));
    if (weightDecay > 0) ops.mulScalar_(parameter, 1 - lr * weightDecay);
    ops.addcdiv_(parameter, mean, ops.addScalar(root, eps), { value: -lr / (1 - beta1 ** steps) });
    encode(mean, exp_avg!, exp_avg_max!, 'signed');
    encode(square, exp_avg_sq!, exp_avg_sq_max!, 'unsigned');
  }
}

/** Keeps two moments in codes of one byte with a magnitude for each block, and a step count; for small parameters what AdamW keeps. */
export const adamw8bit: OptimizerType<Config> = {
  name: 'adamw8bit',
  config,
  slots(shape, settings, inBlock) {
    const numbers = numbersIn(shape);
    if (numbers < smallestInBytes) return adamw.slots(shape, settings, inBlock);
    const largest = { shape: [Math.ceil(numbers / blockSize)], dtype: 'float32' } as const;
    return {
      exp_avg: { shape, dtype: 'uint8' },
      exp_avg_max: largest,
      exp_avg_sq: { shape, dtype: 'uint8' },
      exp_avg_sq_max: largest,
      step: stepCount,
    };
  },
  update(group, rates, settings) {
    const small = group.filter(({ slots }) => !slots.exp_avg_max);
    const inBytes = group.filter(({ slots }) => slots.exp_avg_max);
    if (small.length > 0) adamw.update(small, rates, settings);
    if (inBytes.length === 0) return;
    using _ = scope();
    ops.addScalarToEach(
      inBytes.map(({ slots }) => slots.step!),
      1,
    );
    (inBytes[0]!.parameter.device === host ? updateFused : updateComposite)(inBytes, rates, settings);
  },
};

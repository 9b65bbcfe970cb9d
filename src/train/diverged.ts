import { fileError, GraftError } from '../base/index.ts';
import type { Row } from '../data/index.ts';
import { type Model, namedTensors } from '../nn/index.ts';
import { isAbsent, noGrad, ops, scope, type Tensor } from '../tensor/index.ts';
import { lastCheckpoint } from './checkpoints.ts';

export interface Diverged {
  readonly model: Model;
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly rows: readonly Row[];
  readonly lr: number;
  /** The setting that bounds gradients under the run's optimizer. */
  readonly clipping: string;
  /** Steps that the run has done, and steps that this process has done. */
  readonly step: number;
  readonly steps: number;
  /** Folder of the run's checkpoints. */
  readonly checkpoints: string;
}

/** Parameters of a healthy adapter or model stay far below this; products of larger ones overflow float32. */
const tooLarge = 1e4;

/** The largest magnitude in a tensor; NaN or Infinity when it holds one. */
function magnitude(tensor: Tensor): number {
  return noGrad(() => {
    using _ = scope();
    if (tensor.numel === 0 || isAbsent(tensor)) return 0; // another process looks at its own
    return ops.vectorNorm(tensor, Number.POSITIVE_INFINITY).item(); // without a copy
  });
}

/** Names of the dense weights of the model, other than `trained`, that hold NaN or Infinity. */
function brokenWeights(model: Model, trained: ReadonlySet<Tensor> = new Set()): string[] {
  const dense = [...namedTensors(model.root)].filter(([, t]) => t.dtype.startsWith('float') && !trained.has(t));
  return dense.filter(([, tensor]) => !Number.isFinite(magnitude(tensor))).map(([name]) => name);
}

const listed = (names: readonly string[]) =>
  names.slice(0, 3).join(', ') + (names.length > 3 ? ` and ${names.length - 3} more` : '');

/** A 'numeric' error of a measurement with its likely cause added; every other error is returned as it is. */
export function explainedMeasurement(error: unknown, model: Model, place: string): unknown {
  if (!(error instanceof GraftError) || error.kind !== 'numeric') return error;
  const broken = brokenWeights(model);
  const cause = broken.length > 0 ? `: there are NaN or infinite values in ${listed(broken)}` : '';
  return new GraftError('numeric', `${error.message.replace(/\.$/, '')}${cause}`, {
    place,
    hint: 'Check the model and the adapter',
    cause: error,
  });
}

/** The most likely cause of a loss or gradient that is not finite, and what to do about it. */
function causeOf({ model, parameters, lr, clipping, steps, rows }: Diverged): [cause: string, hint: string] {
  const broken = brokenWeights(model, new Set(parameters.values()));
  if (broken.length > 0)
    return [`the base model holds NaN or infinite values, in ${listed(broken)}`, 'Download the model again'];
  const [name, size] = [...parameters]
    .map(([key, tensor]): [string, number] => [key, magnitude(tensor)])
    .reduce((worst, next) => (worst[1] >= next[1] || Number.isNaN(worst[1]) ? worst : next), ['', 0]);
  if (!Number.isFinite(size) && steps === 0)
    return [`${name} held NaN or infinite values from the beginning`, 'Begin from another adapter or model'];
  if (!(size <= tooLarge))
    return [
      `the learning rate of ${lr} is too high: ${name} has grown to ${Number.isFinite(size) ? size.toExponential(1) : 'a value that overflows float32'}`,
      `Lower train.lr, or set ${clipping} and train.warmup_steps`,
    ];
  return [
    'one of these rows, or a learning rate that is too high',
    `Check ${rows.length === 1 ? 'the row' : 'the rows'}, lower train.lr, or set ${clipping}`,
  ];
}

/** @throws GraftError 'numeric' when a parameter is NaN or infinite: only finite parameters are saved */
export function requireFinite(parameters: ReadonlyMap<string, Tensor>, step: number): void {
  for (const [name, tensor] of parameters) {
    if (!Number.isFinite(magnitude(tensor)))
      throw new GraftError('numeric', `after the optimizer's update ${name} is NaN or infinite`, {
        place: `step ${step}`,
        data: { step },
      });
  }
}

/** A 'numeric' error of a step with its rows, likely cause and last checkpoint added; every other error is returned as it is. */
export function explained(error: unknown, run: Diverged): unknown {
  if (!(error instanceof GraftError) || error.kind !== 'numeric') return error;
  const [cause, hint] = causeOf(run);
  const places = run.rows.map((row) => row.place);
  const rows = places.slice(0, 8).join(', ') + (places.length > 8 ? ` and ${places.length - 8} more` : '');
  const last = lastCheckpoint(run.checkpoints)?.path;
  return new GraftError(
    'numeric',
    `${error.place ? '' : `after step ${run.step}: `}${error.message} Its rows are ${rows}. The likely cause: ${cause}. ${last ? `The last good checkpoint is ${last}` : 'There is no checkpoint yet'}`,
    { hint, data: { ...error.data, rows: places, cause, checkpoint: last ?? null }, cause: error },
  );
}

/** The error of saving a result after the last step: the trained parameters are in the checkpoint. */
export function resultNotSaved(error: unknown, checkpoint: string): GraftError {
  const known = GraftError.of(fileError(error, (error as NodeJS.ErrnoException | null)?.path ?? '', 'written'));
  return new GraftError(
    known.kind,
    `${known.problem.replace(/\.$/, '')}; the trained parameters are in ${checkpoint}`,
    {
      place: known.place,
      hint: `${known.hint ? `${known.hint}, then r` : 'R'}un the same command again: it saves the result without training again`,
      data: { ...known.data, checkpoint },
      cause: error,
    },
  );
}

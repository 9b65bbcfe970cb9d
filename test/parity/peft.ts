/** Goldens of PEFT's adapters (tools/golden/make_peft.py), and functions that compare with them. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { saveAdapter } from '../../src/adapters/index.ts';
import { openSafetensors } from '../../src/io/index.ts';
import type { Adapter } from '../../src/methods/index.ts';
import { type Model, outputOf, packImages, packTokens } from '../../src/nn/index.ts';
import { createOptimizer } from '../../src/optim/index.ts';
import { noGrad, ops, scope, Tensor } from '../../src/tensor/index.ts';
import { golden, integers, numbers, readTensors, relativeError } from '../support.ts';

export type Kind = 'lm' | 'class' | 'tags' | 'span' | 'image';

export interface Sample {
  readonly ids: readonly number[];
  readonly pixels?: Float32Array;
  readonly labels: readonly number[];
  /** The task's number, where several tasks share an adapter. */
  readonly task?: number;
}

export interface Golden {
  readonly dir: string;
  readonly base: string;
  readonly kind: Kind;
  readonly facts: Readonly<Record<string, unknown>>;
  readonly tensors: ReadonlyMap<string, Tensor>;
  readonly rows: readonly Sample[];
  readonly tolerance: {
    readonly logits: number;
    readonly loss: number;
    readonly grad: number;
    readonly curve?: number;
  };
}

export const goldensOf = (pattern: RegExp): string[] =>
  readdirSync(golden('peft'))
    .filter((name) => pattern.test(name))
    .sort();

/** Returns a golden; its tensors belong to the caller's scope. */
export function readGolden(name: string): Golden {
  const dir = golden('peft', name);
  const facts = JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8')) as Record<string, unknown>;
  const { tensors } = readTensors(join(dir, 'golden.safetensors'));
  const rows = [0, 1].map((r): Sample => {
    const pixels = tensors.get(`pixels.${r}`);
    const ids = pixels ? [] : integers(tensors.get(`ids.${r}`)!);
    const task = tensors.get(`task.${r}`)?.item();
    return {
      ids,
      labels: integers(tensors.get(`labels.${r}`)!),
      ...(pixels && { pixels: numbers(pixels) }),
      ...(task !== undefined && { task }),
    };
  });
  const { tolerance } = facts.provenance as { tolerance: Golden['tolerance'] };
  return {
    dir,
    base: golden(...(facts.base as string).split('/')),
    kind: facts.kind as Kind,
    facts,
    tensors,
    rows,
    tolerance,
  };
}

/** Returns the head's output for each row, computed with all rows packed: one tensor per row. */
export function outputs(model: Model, kind: Kind, rows: readonly Sample[]): Tensor[] {
  const packed =
    kind === 'image'
      ? packImages(
          rows.map(({ pixels }) => pixels!),
          model.image!,
        )
      : packTokens(rows.map(({ ids }) => ids));
  const tasks = rows.flatMap(({ task }) => (task === undefined ? [] : [task]));
  const all = outputOf(model, { ...packed, ...(tasks.length > 0 && { tasks }) });
  return rows.map((row, r) =>
    kind === 'class' || kind === 'image'
      ? ops.narrow(all, 0, r, 1)
      : ops.narrow(all, 0, packed.rowStarts[r]!, row.ids.length),
  );
}

/** Returns the mean cross-entropy, as PEFT's models compute it. */
export function lossOf(kind: Kind, logits: readonly Tensor[], rows: readonly Sample[]): Tensor {
  const [picked, targets]: [Tensor[], number[]] = [[], []];
  rows.forEach(({ labels }, r) => {
    labels.forEach((label, i) => {
      const at = kind === 'lm' ? i - 1 : i;
      if (label < 0 || at < 0) return;
      // The start and the end of an answer are each a softmax over the row's tokens.
      picked.push(kind === 'span' ? ops.t(ops.narrow(logits[r]!, 1, i, 1)) : ops.narrow(logits[r]!, 0, at, 1));
      targets.push(label);
    });
  });
  const index = ops.unsqueeze(Tensor.from(BigInt64Array.from(targets, BigInt)), 1);
  const likely = ops.gather(ops.logSoftmax(ops.cat(picked), -1), 1, index);
  return ops.neg(ops.mean(likely));
}

export const logitsOfRows = (model: Model, kind: Kind, rows: readonly Sample[]): Float32Array[] =>
  noGrad(() => {
    using _ = scope();
    return outputs(model, kind, rows).map((t) => numbers(ops.contiguous(t)));
  });

/** Returns the rows of each recorded step. */
const batchesOf = (kind: Kind, steps: number): Sample[][] =>
  readFileSync(golden('peft', `batches.${kind}.jsonl`), 'utf8')
    .trim()
    .split('\n')
    .slice(0, steps)
    .map((line) =>
      (JSON.parse(line) as { rows: { ids: number[]; labels: number[] | number }[] }).rows.map(({ ids, labels }) => ({
        ids,
        labels: [labels].flat(),
      })),
    );

export interface CurveOptions {
  readonly steps?: number;
  readonly lr?: number;
  /** Called after each step. */
  after?(step: number): void;
  /** Returns the task of a row of a step. */
  taskOf?(step: number, row: number): number;
}

/** Trains with AdamW as `trainStep` does, and returns the loss of each step. */
export function curve(model: Model, adapter: Adapter, kind: Kind, options: CurveOptions = {}): number[] {
  const { steps = 20, lr = 1e-2, after, taskOf } = options;
  const { parameters } = adapter;
  const rate = (key: string) => (adapter.learningRate?.(key, lr) ?? lr) / lr;
  using optimizer = createOptimizer(
    { type: 'adamw', beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0 },
    parameters,
    { rateFactor: rate },
  );
  return batchesOf(kind, steps).map((given, step) => {
    using _ = scope();
    const rows = taskOf ? given.map((row, r) => ({ ...row, task: taskOf(step, r) })) : given;
    adapter.beforeStep?.(step, steps);
    const plain = lossOf(kind, outputs(model, kind, rows), rows);
    const loss = adapter.regularisation ? ops.add(plain, adapter.regularisation()) : plain;
    loss.backward();
    optimizer.step(lr);
    adapter.afterStep?.(step);
    after?.(step);
    for (const parameter of parameters.values()) parameter.grad = undefined;
    return loss.item();
  });
}

/** Returns the largest relative difference of any step. */
export const curveError = (got: readonly number[], want: ArrayLike<number>): number => {
  assert.equal(got.length, want.length);
  return Math.max(...got.map((loss, i) => Math.abs(loss / want[i]! - 1)));
};

export const prefix = 'base_model.model.';

/** Returns the gradient of every parameter that is not empty, and clears it. */
export function gradientsOf(parameters: ReadonlyMap<string, Tensor>): Map<string, Float32Array> {
  return new Map(
    [...parameters]
      .filter(([, { numel }]) => numel > 0)
      .map(([key, parameter]) => {
        assert.ok(parameter.grad, `${key} has no gradient`);
        const gradient = numbers(ops.contiguous(parameter.grad));
        parameter.grad = undefined;
        return [key, gradient];
      }),
  );
}

/** Checks that two adapter files have the same tensors, except for the unused biases that PEFT saves with `bias: all`. */
export function sameFile(dir: string, wanted: string): void {
  using got = openSafetensors(join(dir, 'adapter_model.safetensors'));
  using want = openSafetensors(join(wanted, 'adapter_model.safetensors'));
  const wantedKeys = [...want.entries.keys()].filter((key) => !/\.(original_module|modules_to_save)\./.test(key));
  assert.deepEqual([...got.entries.keys()].sort(), wantedKeys.sort());
  for (const key of wantedKeys) {
    const { bytes, shape } = want.entries.get(key)!;
    assert.deepEqual(got.entries.get(key)!.shape, shape, key);
    const [a, b] = [new Uint8Array(bytes), new Uint8Array(bytes)];
    got.read(key, a);
    want.read(key, b);
    assert.deepEqual(a, b, key);
  }
}

/** Returns the fields of a saved config that differ from PEFT's, except for fields that Graft does not use. */
export function differingFields(dir: string, wanted: string): string[] {
  const read = (d: string) =>
    JSON.parse(readFileSync(join(d, 'adapter_config.json'), 'utf8')) as Record<string, unknown>;
  const [got, want] = [read(dir), read(wanted)];
  const plain = (value: unknown) =>
    JSON.stringify(
      value === undefined || value === false || (typeof value === 'object' && Object.keys(value ?? {}).length === 0)
        ? null
        : value,
    );
  const own = new Set([
    'auto_mapping',
    'base_model_name_or_path',
    'peft_version',
    'megatron_core',
    'qalora_group_size',
  ]);
  return [...new Set([...Object.keys(got), ...Object.keys(want)])].filter(
    (key) => !own.has(key) && plain(got[key]) !== plain(want[key]),
  );
}

/** Compares the logits of a golden's rows with PEFT's, and returns them. */
export function comparedLogits(model: Model, { kind, rows, tensors, tolerance }: Golden): Float32Array[] {
  const logits = logitsOfRows(model, kind, rows);
  logits.forEach((got, r) => {
    const error = relativeError(got, numbers(tensors.get(`logits.${r}`)!));
    assert.ok(error <= Math.max(tolerance.logits, 2e-5), `the logits of row ${r} differ by ${error}`);
  });
  return logits;
}

/** Checks that merging keeps the logits up to rounding, and that unmerging restores them bit for bit. */
export function mergesAndBack(model: Model, adapter: Adapter, { kind, rows }: Golden, attached: Float32Array[]): void {
  adapter.merge!();
  logitsOfRows(model, kind, rows).forEach((got, r) => {
    assert.ok(relativeError(got, attached[r]!) <= 1e-5, 'merged equals attached');
  });
  adapter.unmerge!();
  assert.deepEqual(logitsOfRows(model, kind, rows), attached, 'unmerged equals attached, bit for bit');
}

/** Saves the adapter and checks that file and config equal PEFT's; the config need not list the head, which PEFT always trains. */
export function savesAsPeft(model: Model, adapter: Adapter, { dir, base, kind }: Golden, to: string): void {
  saveAdapter(model, adapter, to, { base });
  sameFile(to, dir);
  assert.deepEqual(
    differingFields(to, dir).filter((field) => field !== 'modules_to_save' || kind === 'lm'),
    [],
  );
}

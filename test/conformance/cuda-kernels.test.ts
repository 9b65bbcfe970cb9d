/**
 * Every operator that a training step, a generated token and each method call by the path of a GPU has a kernel in LibTorch's CUDA half,
 * which is asked without a GPU. The steps run on the processor, with the kernels that a GPU takes.
 */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { savedAdapters } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { generate } from '../../src/generate/index.ts';
import { attachMethods } from '../../src/methods/index.ts';
import { type Kernels, kernelsOn } from '../../src/nn/index.ts';
import { createOptimizer } from '../../src/optim/index.ts';
import { formats, unpackable, unpacked } from '../../src/quant/index.ts';
import { noGrad, ops, scope } from '../../src/tensor/index.ts';
import { trainStep } from '../../src/train/index.ts';
import { hostKernels } from '../samples/cuda-kernels.ts';
import { type Base, bases, familyBases } from './bases.ts';
import { peerTorch } from './cuda-library.ts';
import { familyCases } from './family-cases.ts';

/** The path of a libtorch_cuda.so of the engine's version: beside the engine's own, or in the torch of the peer. */
function cudaLibrary(): string | undefined {
  const { torch } = currentEngine();
  const roots = [torch.root, peerTorch(torch) ?? torch.root];
  return roots.map((root) => join(root, 'lib', 'libtorch_cuda.so')).find(existsSync);
}

/** The kernels that a GPU takes, which run on any device: LibTorch's operators, and ours. */
const twins = kernelsOn('cuda:0', 'float32', false);
const ours = kernelsOn('cuda:0', 'float32', true);

let library: string | undefined;

before(async () => {
  await startEngine();
  library = cudaLibrary();
  // Loaded before the first tensor, without a driver: nothing of it runs.
  if (library && currentEngine().cuda.problem) currentEngine().native.loadCuda(library);
  currentEngine().native.threads(1);
});

/** Operators that have no kernel of their own on a GPU: what they are made of, or what a GPU takes in their place. */
const madeOf: Readonly<Record<string, readonly string[]>> = {
  'aten::_scaled_dot_product_flash_attention_for_cpu': [
    'aten::_scaled_dot_product_flash_attention',
    'aten::_scaled_dot_product_efficient_attention',
  ],
  'aten::_scaled_dot_product_flash_attention_for_cpu_backward': [
    'aten::_scaled_dot_product_flash_attention_backward',
    'aten::_scaled_dot_product_efficient_attention_backward',
  ],
  'aten::select_backward': ['aten::zeros', 'aten::select.int', 'aten::copy_'],
};

/** What banks of adapters call beside a step. */
function banks(kernels: Kernels): void {
  using _ = scope();
  const [x, y, gain] = [ops.ones([3, 8]), ops.ones([3, 8]), ops.ones([8])];
  const run = { start: 0, end: 2, a: ops.ones([2, 8], { dtype: 'float16' }), b: ops.ones([2, 8]), scaling: 2 };
  kernels.addLowRankRuns(y, x, [run]);
  for (const f of ['relu', 'silu', 'gelu', 'gelu_tanh', 'tanh', 'sigmoid'] as const)
    kernels.addBottleneckRuns(y, x, f, [{ ...run, aBias: ops.ones([2]), bBias: gain }]);
  kernels.scaleRuns(y, [{ ...run, gain }]);
  noGrad(() => kernels.linears(x, [{ weight: ops.ones([8, 8]), format: -1 }]));
}

test('every operator of every method has a kernel for CUDA', (t) => {
  if (!library) return t.skip('no torch with its CUDA half was found: set GRAFT_PEER to a Python that has one');
  const { native } = currentEngine();
  const calls = new Map<string, number>();
  const record = (act: () => void) => {
    for (const [name, count] of Object.entries(native.recordOperators(act)))
      calls.set(name, (calls.get(name) ?? 0) + count);
  };
  let steps = 0;
  const step = (kernels: Kernels, base: Base) => {
    for (const { method, choices, refuses } of familyCases) {
      if (bases.includes(base) && method !== 'lora') continue;
      using _ = scope();
      const choice = choices(base);
      using model = base.load({ kernels });
      if (refuses?.(model)) continue;
      using adapter = attachMethods(model, choice, 0, savedAdapters(model));
      using optimizer = createOptimizer({ type: 'adamw' } as never, adapter.parameters);
      const { parameters } = adapter;
      adapter.beforeStep?.(1, 10);
      record(() =>
        trainStep({
          model,
          adapter,
          parameters,
          optimizer,
          batches: [base.batch(model)],
          lr: 1e-3,
          maxGradNorm: 1,
          seed: 0,
          step: 1,
        }),
      );
      steps++;
    }
  };
  for (const kernels of [twins, ours]) {
    native.useHostKernels(kernels === ours ? hostKernels() : undefined);
    for (const base of kernels === ours ? bases : [...bases, ...familyBases]) step(kernels, base);
    using model = bases[0]!.load({ kernels });
    record(() => assert.equal([...generate(model, [1, 2, 3], { maxNewTokens: 3 })].length, 3));
    record(() => banks(kernels));
  }
  native.useHostKernels();

  // On the processor tables and packed weights are read by fused operators; a GPU takes these.
  record(() => {
    using _ = scope();
    for (const format of unpackable) {
      const { blockBytes } = Object.values(formats).find(({ nativeId }) => nativeId === format)!;
      unpacked(ops.zeros([2, blockBytes], { dtype: 'uint8' }), format);
    }
    const table = ops.ones([3, 2]);
    table.requiresGrad = true;
    ops.sum(ops.embedding(table, ops.zeros([2], { dtype: 'int64' }))).backward();
  });

  const names = [...calls.keys()];
  const own = names.filter((name) => name.startsWith('graft::'));
  const others = names.filter((name) => !own.includes(name));
  const missing = others.filter((name) => !(madeOf[name] ?? [name]).every((part) => native.hasKernel(part, 'CUDA')));
  t.diagnostic(
    `${steps} steps call ${others.length} operators of LibTorch: ${others.length - missing.length} have a kernel for CUDA`,
  );
  assert.deepEqual(missing, []);
  // Of the last, a GPU takes no notice.
  const launched =
    'add_low_rank_runs_ add_rms_norm block_embedding block_linear block_linears dequantize glu linear_cross_entropy';
  const all = `${launched} lora_gated_linear lora_linear rms_norm rope set_row_wise_products`;
  assert.deepEqual(
    own.sort(),
    all.split(' ').map((name) => `graft::${name}`),
  );
  assert.deepEqual([steps, others.length], [584, 147]);
});

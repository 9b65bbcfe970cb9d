/**
 * The kernels of native/cuda/ without a GPU: NVRTC compiles every instance, and the operators that launch them compute with them on the
 * processor, where src/nn/kernels.test.ts compares them with their twins in float32. Here: the bits of unpacked blocks, bfloat16, and whole
 * steps.
 */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import test, { before } from 'node:test';
import { kernelSources, nvrtcLibraries } from '../../src/engine/cuda.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { type Kernels, kernelsOn } from '../../src/nn/index.ts';
import { formats, unpackable } from '../../src/quant/index.ts';
import { type DType, noGrad, ops, scope, Tensor } from '../../src/tensor/index.ts';
import { hostKernels, kernelInstances } from '../samples/cuda-kernels.ts';
import { relativeError } from '../support.ts';
import { bases, familyBases } from './bases.ts';
import { peerTorch } from './cuda-library.ts';
import { familyCases } from './family-cases.ts';
import { differences, inBfloat16, stepOf } from './steps.ts';

let library = '';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
  library = hostKernels();
});

/** Runs `act` with the operators' CUDA kernels. */
function withKernels<T>(act: () => T): T {
  const { native } = currentEngine();
  native.useHostKernels(library);
  try {
    return act();
  } finally {
    native.useHostKernels();
  }
}

test('NVRTC compiles every kernel for Ampere, Hopper and Blackwell, and no register is spilled', (t) => {
  const { native, torch } = currentEngine();
  const roots = [torch.root, peerTorch(torch)].filter((root) => root !== undefined);
  const libraries = roots.map(nvrtcLibraries).find(([path]) => existsSync(path!));
  if (!libraries) return t.skip('NVRTC was not found: set GRAFT_PEER to a Python that has torch with its CUDA half');
  native.loadNvrtc(libraries, kernelSources);
  let compiled = 0;
  const most = new Map<string, number[]>();
  for (const architecture of ['sm_80', 'sm_90', 'sm_100']) {
    for (const [file, instances] of Object.entries(kernelInstances)) {
      const { log, symbols } = native.compileKernels(file, instances, architecture);
      symbols.forEach((symbol, i) => {
        const about = log.split(`Function properties for ${symbol}\n`)[1] ?? '';
        const [, stores, loads, registers] =
          /(\d+) bytes spill stores, (\d+) bytes spill loads[^]*?Used (\d+) registers/.exec(about) ?? [];
        assert.deepEqual([stores, loads], ['0', '0'], `${instances[i]} for ${architecture}`);
        const key = `${instances[i]!.split('<')[0]} ${architecture}`;
        most.set(key, [...(most.get(key) ?? []), Number(registers)]);
        compiled++;
      });
    }
  }
  for (const [key, registers] of most) {
    t.diagnostic(
      `${key}: ${registers.length} instances, ${Math.min(...registers)} to ${Math.max(...registers)} registers, no spill`,
    );
  }
  assert.equal(compiled, 3 * 70);
  assert.throws(
    () => native.compileKernels('glu.cu', ['glu_forward<Q9, 1>'], 'sm_90'),
    /glu\.cu does not compile for sm_90: .*Q9/s,
  );
});

test('kernels unpack every packed format to the bits of the processor, to float32 and bfloat16', (t) => {
  const seed = Date.now() % 2 ** 31;
  t.diagnostic(`seed ${seed}`);
  let [compared, state] = [0, seed];
  for (const format of unpackable) {
    using _ = scope();
    const { blockBytes } = Object.values(formats).find(({ nativeId }) => nativeId === format)!;
    const bytes = Uint8Array.from({ length: 5 * 7 * blockBytes }, () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state >>> 24;
    });
    const weight = Tensor.from(bytes, [5, 7 * blockBytes]);
    for (const dtype of ['float32', 'bfloat16'] as const) {
      const numbers = () =>
        ops.toCopy(ops.dequantize(weight, format, dtype), { dtype: 'float32' }).data() as Float32Array;
      const [expected, found] = [numbers(), withKernels(numbers)];
      const different = expected.findIndex((x, i) => !Object.is(x, found[i])); // a NaN is a NaN
      assert.equal(
        different,
        -1,
        `format ${format}: ${found[different]} and not ${expected[different]} at ${different}`,
      );
      compared += expected.length;
    }
  }
  t.diagnostic(`${compared} numbers of ${unpackable.length} formats`);
  assert.equal(unpackable.length, 18);
});

const twins = kernelsOn('cuda:0', 'float64');
const ours = kernelsOn('cuda:0', 'bfloat16', true);

/** What an operator computes of inputs of these shapes; the numbers of inputs are small. */
type Case = readonly [name: string, shapes: readonly (readonly number[])[], run: (k: Kernels, t: Tensor[]) => Tensor[]];
const targets = Array.from({ length: 1100 }, (_, i) => BigInt(i % 5 ? (i * 31) % 67 : -100));
const cases: readonly Case[] = [
  ...[64, 61].map((c): Case => ['rms_norm', [[9, c], [c]], (k, [x, w]) => [k.rmsNorm(x!, w!, 1e-5)]]),
  ...[64, 61].map(
    (c): Case => ['add_rms_norm', [[9, c], [9, c], [c]], (k, [x, d, w]) => k.addRmsNorm(x!, d!, w!, 1e-5)],
  ),
  ['rope', [[5, 6, 14]], (k, [x]) => [k.rope(ops.narrow(x!, 1, 1, 3), ...angles(x!.dtype))]],
  ...(['silu', 'gelu_tanh'] as const).flatMap((act) =>
    [
      [4, 8],
      [3, 7],
    ].map((shape): Case => [`glu ${act}`, [shape, shape], (k, [g, u]) => [k.glu(g!, u!, act)]]),
  ),
  [
    'lora_linear',
    [
      [19, 40],
      [23, 40],
      [9, 40],
      [23, 9],
    ],
    (k, [x, w, a, b]) => [k.loraLinear(x!, null, w!, -1, null, a!, b!, 0.4)],
  ],
  [
    'linear_cross_entropy',
    [
      [1100, 24],
      [67, 24],
    ],
    (k, [h, w]) => [k.linearCrossEntropy(h!, w!, -1, Tensor.from(BigInt64Array.from(targets)))],
  ],
];

function angles(dtype: DType): [Tensor, Tensor] {
  const numbers = (shift: number) =>
    Tensor.from(
      Float32Array.from({ length: 20 }, (_, i) => Math.fround(Math.sin(i + shift))),
      [5, 4],
    );
  const inType = (t: Tensor) => ops.toCopy(t, { dtype: dtype === 'bfloat16' ? 'float32' : dtype });
  return [inType(numbers(1)), inType(numbers(2))];
}

test('kernels compute in bfloat16 what their twins do in float64, forward and backward', (t) => {
  let [worst, compared] = [0, 0];
  for (const [name, shapes, run] of cases) {
    using _ = scope();
    const given = shapes.map((shape) =>
      ops.toCopy(ops.mulScalar(ops.randn(shape, { generator: null }), 0.5), { dtype: 'bfloat16' }),
    );
    const evaluate = (kernels: Kernels, dtype: DType) => {
      const inputs = given.map((x) => ops.toCopy(x, { dtype }));
      for (const input of inputs) input.requiresGrad = true;
      const outputs = run(kernels, inputs);
      outputs
        .map((y) => ops.sum(ops.mul(y, y)))
        .reduce((a, b) => ops.add(a, b))
        .backward();
      const numbers = (x: Tensor) =>
        Array.from(noGrad(() => ops.contiguous(ops.toCopy(x, { dtype: 'float64' }))).data() as Float64Array);
      return [...outputs, ...inputs.map(({ grad }) => grad!)].map(numbers);
    };
    const expected = evaluate(twins, 'float64');
    const found = withKernels(() => evaluate(ours, 'bfloat16'));
    expected.forEach((numbers, i) => {
      const error = relativeError(found[i]!, numbers);
      worst = Math.max(worst, error);
      assert.ok(error < 0.03, `${name}, tensor ${i}: ${error}`);
      compared++;
    });
  }
  t.diagnostic(`${compared} tensors, to ${worst.toExponential(1)} of their largest number`);
});

test('steps of LoRA on Llamas with the kernels: losses and gradients', (t) => {
  const worst = { float32: 0, bfloat16: 0 };
  const llamas = [...bases, ...familyBases.filter(({ name }) => name.startsWith('llama'))];
  let steps = 0;
  for (const base of llamas) {
    for (const familyCase of familyCases.filter(
      ({ method, config }) => method === 'lora' && config !== 'rows of tokens',
    )) {
      const fused = stepOf(base, familyCase, {})!;
      const exact = withKernels(() => stepOf(base, familyCase, { kernels: kernelsOn('cuda:0', 'float32', true) })!);
      const one = differences(fused, exact);
      assert.ok(one.loss < 1e-5 && one.gradient < 1e-4, `${familyCase.config} on ${base.name}: ${JSON.stringify(one)}`);
      const rounded = inBfloat16(kernelsOn('cuda:0', 'bfloat16', false), (options) =>
        stepOf(base, familyCase, options),
      )!;
      const found = withKernels(() => inBfloat16(ours, (options) => stepOf(base, familyCase, options)))!;
      const [ofTwins, two] = [differences(fused, rounded), differences(fused, found)];
      // As near to float32 as the twins are, which round between their operators too.
      assert.ok(
        two.gradient < 2 * ofTwins.gradient + 0.01 && two.loss < 2 * ofTwins.loss + 0.01,
        `${familyCase.config} on ${base.name} in bfloat16: ${JSON.stringify([two, ofTwins])}`,
      );
      worst.float32 = Math.max(worst.float32, one.gradient);
      worst.bfloat16 = Math.max(worst.bfloat16, two.gradient);
      steps++;
    }
  }
  t.diagnostic(
    `${steps} steps: gradients to ${worst.float32.toExponential(1)}, in bfloat16 to ${worst.bfloat16.toExponential(1)}`,
  );
  assert.equal(steps, 3 * llamas.length);
});

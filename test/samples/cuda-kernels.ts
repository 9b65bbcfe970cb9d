/** The kernels of native/cuda/: every instance that an operator launches, and a library of all of them for the processor. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../../src/base/index.ts';

const types = ['float', 'Bfloat16'] as const;
const wide = (...of: string[]) => (of.includes('Bfloat16') ? 8 : 4);
const ofTypes = (kernel: string) => types.map((type) => `${kernel}<${type}>`);
const ofWidths = (kernel: string) => types.flatMap((t) => [1, wide(t)].map((n) => `${kernel}<${t}, ${n}>`));

const norms = types.flatMap((x) => types.flatMap((w) => [1, wide(x, w)].map((n) => `<${x}, ${w}, ${n}>`)));
const blocks = ['Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'Q4_K', 'Q5_K', 'Q6_K', 'NF4'];
const integers = [2, 3, 4, 5, 6, 7, 8].map((bits) => `Integer<${bits}>`);

/** Instances by file. */
export const kernelInstances: Readonly<Record<string, readonly string[]>> = {
  'norm.cu': [...norms.flatMap((of) => [`rms_forward${of}`, `rms_backward${of}`]), ...ofTypes('rms_backward_weight')],
  'rope.cu': types.flatMap((x) => types.map((c) => `rotate<${x}, ${c}, ${x === c ? x : 'float'}>`)),
  'glu.cu': [...ofWidths('glu_forward'), ...ofWidths('glu_backward')],
  'dequantize.cu': [...blocks, ...integers].flatMap((format) => types.map((type) => `dequantize<${format}, ${type}>`)),
  'lowrank.cu': ['down', 'up', 'outer'].flatMap(ofTypes),
  'cross_entropy.cu': ofTypes('cross_entropy'),
};

const flags = '-O2 -std=c++17 -shared -fPIC -fno-strict-aliasing -U_FORTIFY_SOURCE -Wno-unknown-pragmas'.split(' ');

/** Compiles all of them for the processor (`cuda-on-cpu.h`). Returns the path of a library for `useHostKernels`. */
export function hostKernels(): string {
  const dir = mkdtempSync(join(tmpdir(), 'graft-kernels-'));
  const [source, library] = [join(dir, 'kernels.cc'), join(dir, 'kernels.so')];
  const runs = Object.values(kernelInstances)
    .flat()
    .map((instance) => {
      const name = instance.replace(/[^A-Za-z0-9]/g, '_');
      const [parameters, given] = ['unsigned x, unsigned y, unsigned z, unsigned t, void** a', 'x, y, z, t, a'];
      return `extern "C" void run_${name}(${parameters}) { on_cpu::run(${instance}, ${given}); }`;
    });
  const included = ['cuda-on-cpu.h', ...Object.keys(kernelInstances)].map((file) => `#include "${file}"`);
  writeFileSync(source, `${[...included, ...runs].join('\n')}\n`);
  const folders = [join(import.meta.dirname), join(packageRoot, 'native', 'cuda')].map((folder) => `-I${folder}`);
  const { status, stderr } = spawnSync(process.env.CXX ?? 'c++', [...flags, ...folders, source, '-o', library], {
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`the kernels do not compile for the processor: ${stderr}`);
  return library;
}

/** What is found of CUDA, with stand-ins of NVIDIA's driver: a library with its name and answers of our own, since no test can need a GPU. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { temporary } from '../../test/support.ts';
import { GraftError, packageRoot } from '../base/index.ts';
import { type Cuda, chooseDevice, type Gpu } from './cuda.ts';
import { currentEngine, startEngine } from './index.ts';

before(() => startEngine());

/** A driver that supports `version` and shows GPUs with a compute capability each. */
const driverSource = (version: number, initError: number, capabilities: readonly number[]) => `
#include <string.h>
static const int capabilities[] = {${[...capabilities.map((c) => Math.round(10 * c)), 0].join(', ')}};
int cuInit(unsigned flags) { return ${initError}; }
int cuDriverGetVersion(int* version) { *version = ${version}; return 0; }
int cuDeviceGetCount(int* count) { *count = ${capabilities.length}; return 0; }
int cuDeviceGet(int* gpu, int i) { *gpu = i; return 0; }
int cuDeviceGetName(char* name, int size, int gpu) { strcpy(name, "NVIDIA Test"); return 0; }
int cuDeviceTotalMem_v2(unsigned long* bytes, int gpu) { *bytes = 80000000000ul; return 0; }
int cuDeviceGetAttribute(int* value, int what, int gpu) {
  *value = what == 75 ? capabilities[gpu] / 10 : capabilities[gpu] % 10;
  return 0;
}
int cuGetErrorString(int code, const char** text) { *text = "unknown error"; return 0; }
`;

interface Found {
  readonly driver?: number;
  readonly gpus: readonly Gpu[];
  readonly problem?: string;
  readonly log: readonly string[];
  readonly libraries: readonly string[];
}

/** Starts the engine in a process of its own beside such a driver; undefined: beside none. */
function startBeside(driver: string | undefined, options: object = {}): Found {
  using dir = temporary();
  if (driver !== undefined) {
    writeFileSync(join(dir.path, 'driver.c'), driver);
    const { status, stderr } = spawnSync('cc', ['-shared', '-fPIC', '-o', 'libcuda.so.1', 'driver.c'], {
      cwd: dir.path,
    });
    assert.equal(status, 0, String(stderr));
  }
  const script = join(dir.path, 'start.ts');
  writeFileSync(
    script,
    `import { readFileSync } from 'node:fs';
import { startEngine } from ${JSON.stringify(join(packageRoot, 'src/engine/index.ts'))};
const log: string[] = [];
const { cuda } = await startEngine({ log: (line) => log.push(line), ...${JSON.stringify(options)} });
const libraries = [...new Set(readFileSync('/proc/self/maps', 'utf8').match(/(libcuda\\.|libc10_cuda|libtorch_cuda|libnvrtc)[^/\\n]*$/gm))];
console.log(JSON.stringify({ ...cuda, problem: cuda.problem?.message, log, libraries }));`,
  );
  const { stdout, stderr } = spawnSync(process.execPath, [script], {
    encoding: 'utf8',
    // pip finds nothing, so that what would be downloaded is only announced.
    env: { ...process.env, LD_LIBRARY_PATH: dir.path, PIP_NO_INDEX: '1', PIP_FIND_LINKS: dir.path },
  });
  assert.notEqual(stdout, '', stderr);
  return JSON.parse(stdout) as Found;
}

/** Whether this machine has a driver: what is tested without one can then not be seen. */
const hasDriver = () => currentEngine().cuda.driver !== undefined;

test('without a driver nothing of CUDA is downloaded or loaded', (t) => {
  if (hasDriver()) return t.skip('this machine has an NVIDIA driver');
  const { gpus, problem, log, libraries } = startBeside(undefined);
  assert.deepEqual([gpus, log, libraries], [[], [], []]);
  assert.equal(problem, 'this machine has no NVIDIA driver (libcuda.so.1).');
});

test('a driver that is too old, or shows no GPU that can be used, is one sentence, and nothing is downloaded', () => {
  const cases = [
    [
      driverSource(12_080, 0, [9]),
      /^the NVIDIA driver supports CUDA 12\.8, and LibTorch needs 13\.0\. Install a driver of version 580/,
    ],
    [driverSource(13_000, 999, []), /^the NVIDIA driver does not start: unknown error\.$/],
    [driverSource(13_000, 0, []), /^the NVIDIA driver shows no GPU\. Look at CUDA_VISIBLE_DEVICES/],
    [
      driverSource(13_000, 0, [7]),
      /^LibTorch has no code for the NVIDIA Test: its compute capability is 7\.0, and the lowest is 7\.5\.$/,
    ],
  ] as const;
  for (const [driver, sentence] of cases) {
    const { problem, log, libraries } = startBeside(driver);
    assert.match(problem!, sentence);
    assert.deepEqual([log, libraries], [[`No GPU is used: ${problem}`], ['libcuda.so.1']]);
  }
  assert.equal(cases.length, 4);
});

test('a GPU is described, and the size of what it needs is said before the download', (t) => {
  const { torch } = currentEngine();
  const driver = driverSource(13_000, 0, [9, 7]);
  const { gpus, driver: version, problem, log, libraries } = startBeside(driver);
  assert.equal(version, 13);
  assert.deepEqual(gpus, [
    { name: 'NVIDIA Test', bytes: 80e9, capability: 9 },
    { name: 'NVIDIA Test', bytes: 80e9, capability: 7 },
  ]);
  if (existsSync(join(torch.root, 'lib', 'libtorch_cuda.so'))) return t.diagnostic('this LibTorch has its CUDA half');
  assert.deepEqual(libraries, ['libcuda.so.1']);
  if (torch.origin !== 'download') return assert.match(problem!, /was built without CUDA/);
  assert.match(log[0]!, /^Downloading LibTorch's CUDA half .* \(2\.5 GB, once\)$/);
  assert.equal(log[1], `No GPU is used: ${problem}`);
  assert.match(problem!, /^LibTorch could not be downloaded: pip found it in no package index/);
  assert.deepEqual(
    readdirSync(join(torch.root, '..', '..')).filter((name) => name.startsWith('fetching-')),
    [],
  );
});

test('work on the processor does not download it', () => {
  const { problem, log } = startBeside(driverSource(13_000, 0, [9]), { cuda: false });
  assert.match(problem!, /the engine was started without CUDA/);
  assert.deepEqual(log, []);
});

describe('a choice of device', () => {
  const gpu = (capability: number): Gpu => ({ name: 'NVIDIA Test', bytes: 1, capability });
  const two: Cuda = { driver: 13, gpus: [gpu(6.1), gpu(9)], problem: undefined };
  const none: Cuda = { driver: undefined, gpus: [], problem: new GraftError('environment', 'there is no driver') };

  test('means a GPU where there is one that can be used', () => {
    const choices = ['auto', 'cpu', 'cuda', 'cuda:1'];
    assert.deepEqual(
      choices.map((choice) => chooseDevice(two, choice)),
      ['cuda:1', 'cpu', 'cuda:1', 'cuda:1'],
    );
    assert.equal(chooseDevice(none, 'auto'), 'cpu');
    assert.equal(chooseDevice(none, 'cpu'), 'cpu');
  });

  test('that is not there is refused in one sentence', () => {
    assert.throws(
      () => chooseDevice(two, 'cuda:7'),
      /^GraftError: there is no cuda:7: this machine has cuda:0, cuda:1\.$/,
    );
    assert.throws(() => chooseDevice(two, 'cuda:0'), /compute capability is 6\.1, and the lowest is 7\.5/);
    assert.throws(() => chooseDevice(none, 'cuda'), /there is no driver/);
    assert.throws(() => chooseDevice(none, 'cuda:0'), /there is no driver/);
    for (const choice of ['gpu', 'meta', 'cuda:', 'cuda:x', ''])
      assert.throws(() => chooseDevice(two, choice), /there is no device '/);
  });
});

import { freemem, totalmem } from 'node:os';
import { currentEngine, processor } from '../engine/index.ts';
import { ops, scope } from '../tensor/index.ts';

/** Measures what the engine does on this machine. */
export function doctorJob(_: object) {
  const { native } = currentEngine();
  const { features } = processor();
  const gemm: Record<'float32' | 'bfloat16', number> = { float32: gemmRate('float32'), bfloat16: gemmRate('bfloat16') };
  const emulated = !features.avx512_bf16 && !features.amx_bf16;
  return {
    threads: native.threads(),
    freeBytes: freemem(),
    totalBytes: totalmem(),
    gemm,
    precision: 'float32' as const,
    precisionReason: emulated
      ? 'bfloat16 products are emulated on this processor'
      : 'adapters learn in full precision; weights may stay bfloat16, int8 or 4 bit in memory',
  };
}

/** GFLOP/s of [1024, 576] × [576, 1536], median of nine. */
export function gemmRate(dtype: 'float32' | 'bfloat16'): number {
  using _ = scope();
  const a = ops.ones([1024, 576], { dtype });
  const b = ops.t(ops.ones([1536, 576], { dtype }));
  const once = () => {
    const start = performance.now();
    for (let i = 0; i < 3; i++) ops.mm(a, b).dispose();
    return (3 * 2 * 1024 * 576 * 1536) / ((performance.now() - start) / 1e3) / 1e9;
  };
  once();
  return Array.from({ length: 9 }, once).sort((x, y) => x - y)[4]!;
}

import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';

/** The processor, with the features that decide on a kernel or a precision. */
export interface Processor {
  /** The vendor id of the processor: GenuineIntel, AuthenticAMD. */
  readonly vendor: string;
  /** The name of the processor model. */
  readonly model: string;
  /** How many cores the system has, hardware threads counted. */
  readonly cores: number;
  /** Which instruction sets it has. */
  readonly features: Readonly<Record<'avx2' | 'fma' | 'avx512f' | 'avx512_bf16' | 'avx512_vnni' | 'amx_bf16', boolean>>;
}

/** Returns the processor as /proc/cpuinfo describes it; on systems other than Linux every feature is absent. */
export function processor(): Processor {
  let flags = new Set<string>();
  let vendor = 'unknown';
  let model = cpus()[0]?.model ?? 'unknown';
  try {
    const info = readFileSync('/proc/cpuinfo', 'utf8');
    flags = new Set((/^flags\s*:\s*(.*)$/m.exec(info)?.[1] ?? '').split(' '));
    vendor = /^vendor_id\s*:\s*(.*)$/m.exec(info)?.[1] ?? vendor;
    model = /^model name\s*:\s*(.*)$/m.exec(info)?.[1] ?? model;
  } catch {
    // Not Linux: startEngine reports that.
  }
  const has = (flag: string) => flags.has(flag);
  return {
    vendor,
    model,
    cores: cpus().length,
    features: {
      avx2: has('avx2'),
      fma: has('fma'),
      avx512f: has('avx512f') && has('avx512bw') && has('avx512vl') && has('avx512dq'),
      avx512_bf16: has('avx512_bf16'),
      avx512_vnni: has('avx512_vnni'),
      amx_bf16: has('amx_bf16'),
    },
  };
}

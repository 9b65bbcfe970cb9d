import { Command } from 'commander';
import { engineStatus, processor, startEngine } from '../engine/index.ts';
import { Session } from '../session/index.ts';
import { examples, logLine, mebibytes } from './shared.ts';

export const doctor = () =>
  new Command('doctor')
    .description('Show what this machine has and what follows from it; build what is missing.')
    .option('--rebuild', 'build the native addon again')
    .option('--json', 'print the findings as JSON')
    .addHelpText('after', examples('graft doctor', 'graft doctor --json | jq .gemm'))
    .action(async ({ rebuild, json }: { rebuild?: true; json?: true }) => {
      if (rebuild) await startEngine({ rebuild });
      const { features, model, cores } = processor();
      await using session = new Session();
      const measured = await session.run('doctor', {}, logLine);
      const { torch, addon } = engineStatus();
      const findings = { processor: { model, cores, features }, libtorch: torch, addon, ...measured };
      if (json) {
        console.log(JSON.stringify(findings));
        return;
      }
      const has = Object.entries(features)
        .filter(([, on]) => on)
        .map(([name]) => name);
      const rows: [string, string][] = [
        ['processor', `${model}, ${cores} cores (${has.join(', ')})`],
        ['threads', String(measured.threads)],
        ['LibTorch', `${torch?.version} from ${torch?.origin}: ${torch?.root}`],
        ['addon', String(addon)],
        ['memory', `${mebibytes(measured.freeBytes)} free of ${mebibytes(measured.totalBytes)}`],
        ...Object.entries(measured.gemm).map(([dtype, rate]): [string, string] => [
          `GEMM ${dtype}`,
          `${rate.toFixed(0)} GFLOP/s at [1024, 576] × [576, 1536]`,
        ]),
        ['kernels', features.avx512f ? 'AVX-512' : 'AVX2'],
        ['precision', `${measured.precision}: ${measured.precisionReason}`],
      ];
      const width = Math.max(...rows.map(([name]) => name.length));
      for (const [name, value] of rows) console.log(`${name.padEnd(width)}  ${value}`);
    });

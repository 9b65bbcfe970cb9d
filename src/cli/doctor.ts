import { Command } from 'commander';
import { engineStatus, processor, startEngine } from '../engine/index.ts';
import { type DoctorResult, type MemoryChoice, type MemoryPlan, Session } from '../session/index.ts';
import { examples, printJson } from './shared.ts';

export const doctor = () =>
  new Command('doctor')
    .description('Show what this machine can do, and which models fit; download and build what is missing.')
    .option('--model <path>', 'show what ways of training this model take in memory, instead of three common sizes')
    .option('--rebuild', 'build the native addon again', false)
    .option('--json', 'print the findings as JSON', false)
    .addHelpText('after', examples('graft doctor', 'graft doctor --model base.gguf', 'graft doctor --json'))
    .action(async ({ rebuild, json, model: path }: { rebuild: boolean; json: boolean; model?: string }) => {
      if (rebuild) await startEngine({ rebuild });
      const { features, model, cores } = processor();
      await using session = new Session();
      const measured = await session.doctor(path === undefined ? {} : { model: path });
      const { torch, addon } = engineStatus();
      const findings = { processor: { model, cores, features }, libtorch: torch, addon, ...measured };
      if (json) {
        return printJson(findings);
      }
      const has = Object.entries(features)
        .filter(([, on]) => on)
        .map(([name]) => name);
      table([
        ['processor', `${model}, ${cores} cores, ${measured.threads} threads in use`],
        ['features', has.join(', ')],
        ['kernels', measured.kernels],
        ['memory', `${gigabytes(measured.freeBytes)} free of ${gigabytes(measured.totalBytes)}`],
        ['LibTorch', `${torch?.version}, ${origins[torch!.origin]}`],
        ['', torch!.root],
        ['addon', String(addon)],
        ...Object.entries(measured.gemm).map(([dtype, rate]) => [
          `GEMM ${dtype}`,
          `${rate.toFixed(0)} GFLOP/s at [1024, 576] × [576, 1536]`,
        ]),
        ...gpuRows(measured.cuda),
        ['device', `${measured.device} by default, with ${measured.deviceKernels}`],
        ['precision', `${measured.precision}: ${measured.precisionReason}`],
      ]);
      if (measured.choices) return showChoices(measured.choices);
      console.log(
        '\nMemory of the weights by `quantize`, and the default tokens of a micro-batch in training\n(LoRA r=8 on all linear layers; train.micro_tokens overrides it):\n',
      );
      table([['', 'parameters', ...measured.plans[0]!.fits.map((fit) => fit.quantize)], ...measured.plans.map(row)]);
      console.log();
      for (const plan of measured.plans)
        console.log(
          `${plan.name}: adapter and optimizer ${gigabytes(plan.adapterBytes)}, activations ${(plan.bytesPerToken / 1e6).toFixed(1)} MB a token`,
        );
    });

const origins = {
  GRAFT_LIBTORCH: 'set by GRAFT_LIBTORCH',
  python3: 'from the torch of python3',
  download: 'downloaded by Graft',
} as const;

const gigabytes = (bytes: number) => (bytes < 1e9 ? `${Math.ceil(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`);

/** The driver and its GPUs, or what is missing. */
function gpuRows({ driver, gpus, problem }: DoctorResult['cuda']): string[][] {
  const found = gpus.map(({ name, bytes, capability }, i) => [
    `cuda:${i}`,
    `${name}, ${gigabytes(bytes)}, compute capability ${capability.toFixed(1)}`,
  ]);
  return [
    ...(driver === null ? [] : [['driver', `of NVIDIA, for CUDA ${driver.toFixed(1)}`]]),
    ...found,
    ...(problem === null ? [] : [['GPU', `none can be used: ${problem}`]]),
  ];
}

const row = ({ name, parameters, fits }: MemoryPlan): string[] => [
  name,
  parameters >= 1e9 ? `${(parameters / 1e9).toFixed(2)} B` : `${(parameters / 1e6).toFixed(1)} M`,
  ...fits.map(
    ({ weightBytes, microTokens }) =>
      `${gigabytes(weightBytes)}, ${microTokens === null ? 'does not fit' : `${microTokens} tokens`}`,
  ),
];

/** Prints what each way of training takes; those that are refused with their reason below. */
function showChoices(choices: readonly MemoryChoice[]): void {
  const name = ({ method, optimizer, gradientCheckpointing, offload }: MemoryChoice) => {
    const methods = method.map(({ type, r, policy }) => [type, r && `r=${r}`, policy].filter(Boolean).join(' '));
    const settings = [...(gradientCheckpointing ? ['checkpointing'] : []), ...offload.map((part) => `offload ${part}`)];
    return [methods.join(' + '), optimizer, ...settings].join(', ');
  };
  const possible = choices.flatMap((choice) => (choice.memory ? [{ ...choice, memory: choice.memory }] : []));
  console.log(
    `\nMemory of a run in MB, read from the shapes of the weights: by method, optimizer, gradient checkpointing and train.offload, and by quantize; tokens: of a micro-batch by default;\nengine: its code and buffers; apart: what of gradients and activations is never there at once, which the total has not; disk: what is there instead of in memory\n(the process itself takes ${possible[0]?.memory.processMb ?? 0} more; graft train says what a recipe takes):\n`,
  );
  const rows = possible.map(({ quantize, microTokens, memory, fits, ...choice }) => {
    const { weightsMb, gradientsMb, optimizerMb, activationsMb, engineMb, apartMb, totalMb } = memory;
    const onDiskMb = memory.weightsOnDiskMb + memory.optimizerOnDiskMb;
    const parts = [weightsMb, gradientsMb, optimizerMb, activationsMb, engineMb, -apartMb, totalMb, onDiskMb];
    return [
      name({ ...choice, quantize }),
      quantize,
      ...[microTokens!, ...parts].map(String),
      fits ? 'fits' : 'does not fit',
    ];
  });
  const parts = ['weights', 'gradients', 'optimizer', 'activations', 'engine', 'apart', 'total', 'disk'];
  table([['', 'quantize', 'tokens', ...parts, ''], ...rows]);
  const refused = choices.filter((choice) => choice.refused !== undefined);
  if (refused.length > 0) console.log();
  for (const choice of refused) console.log(`${name(choice)}, quantize: ${choice.quantize}: ${choice.refused}`);
}

/** Prints rows of cells in columns. */
function table(rows: readonly (readonly string[])[]): void {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((cells) => cells[i]?.length ?? 0)));
  for (const cells of rows)
    console.log(
      cells
        .map((cell, i) => cell.padEnd(widths[i]!))
        .join('  ')
        .trimEnd(),
    );
}

import { Command, Option } from 'commander';
import { Session } from '../session/index.ts';
import { type RanksPlan, readRecipe, type Stage, type StagePlan, stages } from '../train/index.ts';
import { bytes, collect, count, duration, examples, printJson, printNotes, quantity } from './shared.ts';

const bytesPerSecond = quantity({ 'B/s': 1, 'bit/s': 1 / 8 }, '50GB/s or 400Gbit/s');
const flopsPerSecond = quantity({ FLOPS: 1, 'FLOP/s': 1 }, '300TFLOPS');

export const plan = () =>
  new Command('plan')
    .description(
      'Plan a recipe for many processes, which need not exist: memory, traffic and time of each at every ZeRO stage, and the cheapest stage that fits.',
    )
    .argument('<recipe>', 'a YAML file, as of graft train; nothing of its model but the list of weights is read')
    .requiredOption('--ranks <n>', 'number of processes', count)
    .addOption(
      new Option('--zero <stage>', 'the stage to look at; default: that of the recipe').choices(stages.map(String)),
    )
    .option(
      '--shape <name>',
      'a common model instead of that of the recipe: llama-7b, llama-70b, llama-405b and others',
    )
    .option('--row-tokens <n>', 'tokens of a row; default: data.max_length of the recipe', count)
    .option('--memory <bytes>', 'memory for each process, such as 80GB; default: what is free on this machine', bytes)
    .option('--bandwidth <bytes/s>', 'what a process sends a second, such as 50GB/s or 400Gbit/s', bytesPerSecond)
    .option('--flops <number>', 'operations a second of a process, such as 300TFLOPS', flopsPerSecond)
    .option('--set <a.b=value>', 'override a field of the recipe, the value in YAML; may be repeated', collect)
    .option('--json', 'print the plan as JSON')
    .addHelpText(
      'after',
      examples(
        'graft plan recipe.yaml --ranks 4',
        'graft plan recipe.yaml --ranks 64 --zero 3 --shape llama-70b --memory 80GB --bandwidth 50GB/s --flops 300TFLOPS --set train.batch_size=64',
      ),
    )
    .action(
      async (
        file: string,
        {
          set,
          json,
          zero,
          ...options
        }: {
          ranks: number;
          zero?: string;
          shape?: string;
          rowTokens?: number;
          memory?: number;
          bandwidth?: number;
          flops?: number;
          set?: string[];
          json?: true;
        },
      ) => {
        const recipe = readRecipe(file, set);
        await using session = new Session();
        const stage = zero === undefined ? undefined : (Number(zero) as Stage);
        const planned = await session.plan(recipe, { ...options, ...(stage !== undefined && { zero: stage }) });
        if (json) return printJson(planned);
        show(planned);
      },
    );

const size = (bytes: number) =>
  bytes >= 1e12
    ? `${(bytes / 1e12).toFixed(1)} TB`
    : bytes >= 1e9
      ? `${(bytes / 1e9).toFixed(1)} GB`
      : `${(bytes / 1e6).toFixed(1)} MB`;
const seconds = (value: number | null) =>
  value === null ? '' : value < 1 ? `${(value * 1e3).toFixed(0)} ms` : duration(value);

function show(planned: RanksPlan): void {
  const { model, ranks, rowsPerRank, microBatches, memoryBytes, rowTokens, asked } = planned;
  console.log(
    `${model}: ${ranks} ${ranks === 1 ? 'process' : 'processes'}, each with ${rowsPerRank} ${rowsPerRank === 1 ? 'row' : 'rows'} of ${rowTokens} tokens a step in ${microBatches} ${microBatches === 1 ? 'micro-batch' : 'micro-batches'}, and ${size(memoryBytes)} of memory`,
  );
  console.log(
    `${planned.trainedNumbers.toLocaleString('en')} numbers are trained; what is frozen takes ${size(planned.frozenBytes)}\n`,
  );
  const rows: [string, (stage: StagePlan) => string][] = [
    ['stage', ({ stage, available }) => `${stage}${available ? '' : ' *'}`],
    ['weights', ({ weightBytes }) => size(weightBytes)],
    ['gradients', ({ gradientBytes }) => size(gradientBytes)],
    ['optimizer', ({ optimizerBytes }) => size(optimizerBytes)],
    ['activations', ({ activationBytes }) => size(activationBytes)],
    ['buffers', ({ bufferBytes }) => size(bufferBytes)],
    ['total', ({ totalBytes, fits }) => `${size(totalBytes)}${fits ? '' : ' !'}`],
    ['on the disk', ({ diskBytes }) => (diskBytes > 0 ? size(diskBytes) : '')],
    ['sent a step', ({ trafficBytes }) => size(trafficBytes)],
    ['computing', ({ computeS }) => seconds(computeS)],
    ['sending', ({ trafficS }) => seconds(trafficS)],
    ['step', ({ stepS }) => seconds(stepS)],
  ];
  for (const [name, cell] of rows) {
    const cells = planned.stages.map(cell);
    if (cells.some((text) => text !== ''))
      console.log([name.padEnd(12), ...cells.map((text) => text.padStart(12))].join(''));
  }
  const marks = [
    ...(planned.stages.every(({ available }) => available) ? [] : ['* the method does not train so']),
    ...(planned.stages.every(({ fits }) => fits) ? [] : ['! more than the memory']),
  ];
  if (marks.length > 0) console.log(`\n${marks.join('   ')}`);
  const { fits, available } = planned.stages[asked]!;
  const { cheapest, cheapestAvailable } = planned;
  const ofMethod =
    cheapestAvailable === cheapest ? '' : `; of those that the method trains with: ${cheapestAvailable ?? 'none'}`;
  console.log(
    `\nStage ${asked} ${fits ? 'fits' : 'does not fit'}${available ? '' : ', and the method does not train so'}. The cheapest that fits: ${cheapest ?? 'none'}${ofMethod}.`,
  );
  printNotes(planned.notes);
}

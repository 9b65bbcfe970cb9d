import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { temporary } from '../../test/samples/io.ts';
import { runRanks } from '../../test/samples/ranks.ts';
import { tinyModel } from '../../test/samples/tiny.ts';
import { GraftError, packageRoot } from '../base/index.ts';
import { startEngine } from '../engine/index.ts';
import { type ClusterPlan, clusterPlan, type PlannedModel, type PlannedRun, trafficOf } from './cluster-plan.ts';
import { llamaShapes, tensorsOf } from './llama-shapes.ts';
import { planMemory } from './memory-plan.ts';
import { planForRanks } from './plan-for-ranks.ts';
import { plannedFromShape, plannedFromSketch } from './planned-model.ts';
import { parseRecipe } from './recipe.ts';
import { openTaskModels } from './task-models.ts';

await startEngine();

const recipeOf = (fields: object) =>
  parseRecipe({ model: 'none', method: { type: 'lora' }, data: { train: '/none' }, run: { dir: '/none' }, ...fields });

test('the common shapes have as many parameters as their models', () => {
  const counts = Object.entries(llamaShapes).map(([name, shape]) => {
    const sizes = [...tensorsOf(shape).values()].map(({ entry }) => entry.shape.reduce((a, b) => a * b, 1));
    return [name, sizes.reduce((a, b) => a + b)];
  });
  // The sizes that the Hugging Face hub shows for SmolLM2-135M, Llama-3.2-1B, Llama-2-7b, Llama-3.1-70B and 405B.
  assert.deepEqual(Object.fromEntries(counts), {
    'smollm2-135m': 134_515_008,
    'llama-1b': 1_235_814_400,
    'llama-7b': 6_738_415_616,
    'llama-70b': 70_553_706_496,
    'llama-405b': 405_853_388_800,
  });
});

/** Two blocks between tables, with numbers that are easy to add up. */
const model: PlannedModel = {
  name: 'm',
  units: [
    { frozenBytes: 8e9, trained: [] },
    { frozenBytes: 4e9, trained: [3e6, 1e6] },
    { frozenBytes: 6e9, trained: [2e6, 2e6] },
    { frozenBytes: 2e9, trained: [] },
  ],
  trainsBase: false,
  isDivisible: true,
  isTied: true,
  optimizerBytes: 64e6,
  flopsPerToken: 1e9,
  replayedFlopsPerToken: 5e8,
  wholeGradients: false,
  freesGradients: false,
  activationBytes: (tokens, _rows, checkpointed) => tokens * (checkpointed ? 1e6 : 4e6),
};
const run: PlannedRun = { ranks: 4, rows: 16, rowTokens: 100, microTokens: 250, checkpointed: false, memory: 25e9 };

test('memory, traffic and time of each stage by the formulas of ZeRO, added up by hand', () => {
  const { stages, ...plan } = clusterPlan(model, { ...run, bandwidth: 1e9, flops: 1e12 });
  assert.deepEqual(
    { ...plan },
    {
      ...{ model: 'm', ranks: 4, trainedNumbers: 8e6, frozenBytes: 20e9, memoryBytes: 25e9 },
      // 4 rows for each process, 2 in a micro-batch.
      ...{ rowsPerRank: 4, microBatches: 2, cheapest: 0, cheapestAvailable: 0 },
    },
  );
  // Tensors of 3, 2, 2 and 1 million numbers for four processes: the largest share is 3 of 8.
  const column = (field: keyof (typeof stages)[number]) => stages.map((stage) => stage[field]);
  assert.deepEqual(column('weightBytes'), [20.032e9, 20.032e9, 20.032e9, 5.032e9]);
  assert.deepEqual(column('gradientBytes'), [32e6, 32e6, 12e6, 32e6]);
  assert.deepEqual(column('optimizerBytes'), [64e6, 24e6, 24e6, 24e6]);
  assert.deepEqual(column('activationBytes'), [8e8, 8e8, 8e8, 8e8]);
  const bucket = 2 * 4 * 2 ** 22;
  // Buckets of 4 million numbers each, sent and received. Stage 3 holds the tables and two neighbouring blocks.
  assert.deepEqual(column('bufferBytes'), [16e6, bucket, bucket, 20e9]);
  // With more than four processes the network has a copy of the largest block too.
  assert.equal(clusterPlan(model, { ...run, ranks: 8 }).stages[3]!.bufferBytes, 20e9 + 6e9);
  // Two micro-batches gather the tables once and the blocks twice.
  assert.deepEqual(column('trafficBytes'), [48e6, 48e6, 72e6, 0.75 * 2 * (10e9 + 20e9) + 48e6]);
  assert.deepEqual(column('computeS'), [0.4, 0.4, 0.4, 0.4]);
  assert.deepEqual(column('trafficS'), [0.048, 0.048, 0.072, 45.048]);
  const replayed = clusterPlan(model, { ...run, checkpointed: true, flops: 1e12 }).stages;
  for (const { activationBytes, computeS } of replayed) assert.deepEqual([activationBytes, computeS], [2e8, 0.6]);
  assert.deepEqual(column('available'), [true, true, true, true]);
  for (const {
    totalBytes,
    weightBytes,
    gradientBytes,
    optimizerBytes,
    activationBytes,
    bufferBytes,
    ...stage
  } of stages) {
    assert.equal(totalBytes, weightBytes + gradientBytes + optimizerBytes + activationBytes + bufferBytes);
    assert.equal(stage.fits, totalBytes <= 25e9);
    assert.equal(stage.stepS, stage.computeS! + stage.trafficS!);
  }
});

test('weights that are trained are divided at stage 3, gathered as the frozen ones are, and their gradients sent', () => {
  const of = (isDivisible: boolean) => clusterPlan({ ...model, trainsBase: true, isDivisible }, run).stages[3]!;
  const [even, whole] = [of(true), of(false)];
  const kept = ({ weightBytes, gradientBytes, optimizerBytes }: typeof even) => [
    weightBytes,
    gradientBytes,
    optimizerBytes,
  ];
  assert.deepEqual(kept(even), [5e9 + 8e6, 8e6, 16e6]);
  // Whole parameters: the largest share is 3 of 8.
  assert.deepEqual(kept(whole), [5e9 + 12e6, 12e6, 24e6]);
  // In the second block, a process has none of its gradients of the first.
  assert.equal(even.bufferBytes, 20e9 + 32e6 + 3 * 16e6 - (2 / 8) * 16e6);
  assert.equal(whole.bufferBytes, 20e9 + 32e6 + 3 * 16e6 - (3 / 8) * 16e6);
  for (const { trafficBytes } of [even, whole])
    assert.equal(trafficBytes, 0.75 * 2 * (10e9 + 2 * (10e9 + 32e6) + 32e6));
});

test('embeddings and head that are two tables are gathered where they are used', () => {
  const of = (trainsBase: boolean) => clusterPlan({ ...model, trainsBase, isTied: false }, run).stages[3]!;
  // The lookups: the table of 8 GB, and the block behind it.
  assert.equal(of(false).bufferBytes, 8e9 + 4e9);
  assert.equal(of(false).trafficBytes, 0.75 * 2 * (10e9 + 20e9) + 48e6);
  assert.equal(of(true).bufferBytes, 8e9 + 4e9 + 16e6);
  const ofEight = clusterPlan({ ...model, isTied: false }, { ...run, ranks: 8 }).stages[3]!;
  assert.equal(ofEight.bufferBytes, 8e9 + 4e9 + 8e9, 'and a copy of the table');
  // Trained, they are looked up again in the backward pass.
  assert.equal(of(true).trafficBytes, 0.75 * 2 * (8e9 + 10e9 + 2 * (10e9 + 32e6) + 32e6));
});

test('the cheapest stage is the quickest that fits; without speeds, that of the least traffic', () => {
  const [block, table] = [model.units[2]!, { frozenBytes: 1e9, trained: [] }];
  // What adds parameters to every block, such as AdaLoRA, reads all gradients: stage 2 is not for it.
  const deep = { ...model, units: [table, ...Array(8).fill(block), table], wholeGradients: true };
  const cheapest = (memory: number, more: Partial<PlannedRun> = {}) => {
    const { cheapest, cheapestAvailable } = clusterPlan(deep, { ...run, memory, ...more });
    return [cheapest, cheapestAvailable];
  };
  const { stages } = clusterPlan(deep, run);
  const totals = stages.map(({ totalBytes }) => totalBytes);
  assert.ok(totals[1]! < totals[0]! && totals[2]! < totals[1]! && totals[3]! < totals[2]!, totals.join());
  assert.deepEqual(cheapest(totals[0]!), [0, 0]);
  assert.deepEqual(cheapest(totals[2]!), [2, 3]);
  assert.deepEqual(cheapest(totals[3]!), [3, 3]);
  assert.deepEqual(cheapest(1e9), [null, null]);
  const alone = clusterPlan(model, { ...run, ranks: 1, bandwidth: 1 });
  assert.deepEqual(
    alone.stages.map(({ trafficBytes, trafficS, stepS, bufferBytes }) => [trafficBytes, trafficS, stepS, bufferBytes]),
    Array(4).fill([0, 0, null, 0]),
  );
  assert.throws(
    () => clusterPlan(model, { ...run, ranks: 17 }),
    /17 processes, but a step has 16 rows.*--set train\.batch_size=17/,
  );
});

const added = (numbers: number) => ({
  units: [{ frozenBytes: 1e9, trained: [numbers] }],
  trainsBase: false,
  isTied: true,
  wholeGradients: false,
});

test('traffic of stages 0 and 1: what processes send, within 2 %', async () => {
  const cases = [
    { size: 2, stage: 0 },
    { size: 3, stage: 1 },
  ] as const;
  for (const { size, stage } of cases) {
    const outcomes = await runRanks('shard', stage, { size });
    const numbers = Number(outcomes[0]!.value!.numbers);
    const sent = outcomes.reduce((sum, { value }) => sum + Number(value!.sent), 0) / size;
    const planned = trafficOf(added(numbers), size, stage, 3);
    assert.ok(Math.abs(sent / planned - 1) < 0.02, `stage ${stage}: ${sent} bytes, and the plan says ${planned}`);
  }
  assert.equal(trafficOf({ ...added(25), wholeGradients: true }, 2, 1, 1), 150);
});

test('a model at hand and its shape are planned alike; one process has what a run announces', async () => {
  using dir = temporary();
  const path = tinyModel(join(dir.path, 'model'));
  const config = JSON.parse(readFileSync(join(path, 'config.json'), 'utf8'));
  const shape = {
    title: 'tiny',
    layers: config.num_hidden_layers,
    width: config.hidden_size,
    inner: config.intermediate_size,
    kv: (config.hidden_size / config.num_attention_heads) * config.num_key_value_heads,
    vocab: config.vocab_size,
    tied: config.tie_word_embeddings,
  };
  const cases = [
    { method: { type: 'full' } },
    { method: { type: 'full' }, train: { optimizer: { type: 'lomo' } } },
    { method: { type: 'lora', r: 4, target_modules: 'all-linear' } },
    { method: { type: 'lora' }, train: { optimizer: { type: 'lion' } } },
    { method: { type: 'lora', target_modules: ['gate_proj'] }, train: { optimizer: { type: 'adafactor' } } },
  ];
  for (const fields of cases) {
    const recipe = recipeOf({ ...fields, model: path });
    const what = JSON.stringify(fields);
    using sketch = openTaskModels(recipe, path, [{ name: undefined, head: {} }], true);
    const [ofModel, ofShape] = [plannedFromSketch(recipe, sketch), plannedFromShape(recipe, shape)];
    const sizes = ({ units, ...planned }: PlannedModel) => ({
      frozen: units.map(({ frozenBytes }) => frozenBytes),
      trained: units.map(({ trained }) => trained.toSorted((a, b) => a - b)),
      optimizer: planned.optimizerBytes,
      flops: [planned.flopsPerToken, planned.replayedFlopsPerToken].map((value) => Math.round(value / 1e3)),
    });
    assert.deepEqual(sizes(ofModel).frozen, sizes(ofShape).frozen, what);
    assert.deepEqual(sizes(ofModel).trained, sizes(ofShape).trained, what);
    assert.equal(ofModel.optimizerBytes, ofShape.optimizerBytes, what);
    // Norms are no products; a model counts them among its parameters.
    assert.ok(Math.abs(ofModel.flopsPerToken / ofShape.flopsPerToken - 1) < 0.02, what);

    const alone = { ...run, ranks: 1, rows: 2, rowTokens: 300, microTokens: 600, memory: 1e12 };
    const [stage] = clusterPlan(ofModel, alone).stages;
    const before = { process: 0, precision: 'float32', microTokens: 600, steps: 2 } as const;
    const batches = () => [{ model: sketch.host, tokens: 600, rows: 2, several: false }];
    const { memory } = planMemory(recipe, sketch, before, batches);
    const mebibytes = (bytes: number) => Math.round(bytes / 2 ** 20);
    assert.deepEqual(
      [stage!.gradientBytes, stage!.optimizerBytes, stage!.activationBytes].map(mebibytes),
      [memory.gradientsMb, memory.optimizerMb, memory.activationsMb],
      what,
    );
    assert.ok(Math.abs(mebibytes(stage!.weightBytes) - memory.weightsMb) <= 1, what);
  }
  assert.equal(cases.length, 5);

  // A run of two processes plans the share that each of them keeps.
  for (const stage of [0, 1, 2, 3] as const) {
    const recipe = recipeOf({ method: { type: 'full' }, model: path, train: { zero: { stage } } });
    using sketch = openTaskModels(recipe, path, [{ name: undefined, head: {} }], true);
    const two = { ...run, ranks: 2, rows: 4, rowTokens: 300, microTokens: 600, memory: 1e12 };
    const planned = clusterPlan(plannedFromSketch(recipe, sketch), two).stages[stage]!;
    const before = { process: 0, precision: 'float32', microTokens: 600, steps: 2, processes: 2, sharers: 2 } as const;
    const batches = () => [{ model: sketch.host, tokens: 600, rows: 2, several: false }];
    const { memory } = planMemory(recipe, sketch, before, batches);
    assert.ok(Math.abs(planned.gradientBytes / 2 ** 20 - memory.gradientsMb) <= 0.5, `gradients at stage ${stage}`);
    assert.ok(Math.abs(planned.optimizerBytes / 2 ** 20 - memory.optimizerMb) <= 0.5, `optimizer at stage ${stage}`);
    assert.ok(Math.abs(planned.weightBytes / 2 ** 20 - memory.weightsMb) <= 0.5, `weights at stage ${stage}`);
    assert.equal(planned.available, true);
  }
  const plan = await planForRanks(recipeOf({ model: path, train: { batch_size: 4 } }), {
    ranks: 2,
    zero: 1,
    rowTokens: 50,
  });
  assert.deepEqual([plan.asked, plan.rowsPerRank, plan.microBatches, plan.cheapestAvailable], [1, 2, 1, 0]);
});

test('what cannot be planned is refused', async () => {
  const cases: [fields: object, shape: string, message: RegExp][] = [
    [{}, 'lama-70b', /there is no shape 'lama-70b'. Did you mean llama-70b\?/],
    [{ method: { type: 'prefix' } }, 'llama-7b', /not with prefix/],
    [{ method: { type: 'lora', use_dora: true } }, 'llama-7b', /not with method\.use_dora/],
    [{ method: { type: 'lora', target_modules: '.*q_proj' } }, 'llama-7b', /not with the pattern target_modules/],
    [{ method: { type: 'lora', target_modules: ['query'] } }, 'llama-7b', /target_modules matches no module/],
    [{ method: [{ type: 'lora' }, { type: 'prefix' }] }, 'llama-7b', /not with lora \+ prefix/],
    [
      { method: { type: 'full' }, quantize: 'nf4' },
      'llama-7b',
      /full trains dense weights, and the recipe has quantize: nf4/,
    ],
    [{ task: 'sequence-classification' }, 'llama-7b', /not with the task sequence-classification/],
    [
      { method: { type: 'full' }, train: { optimizer: { type: 'lomo' } } },
      'llama-7b',
      /several processes add their gradients up/,
    ],
    [{ adapter: '/adapter' }, 'llama-7b', /not with an adapter to begin from/],
  ];
  for (const [fields, shape, message] of cases)
    await assert.rejects(
      planForRanks(recipeOf(fields), { ranks: 2, shape }),
      (error) => error instanceof GraftError && error.kind === 'usage' && message.test(error.message),
      String(message),
    );
  assert.equal(cases.length, 10);
});

const gigabytes = (bytes: number) => (bytes < 1e9 ? `${(bytes / 1e9).toFixed(2)}` : `${(bytes / 1e9).toFixed(1)}`);

/** The table of docs/processes.md: rows of one token budget for each process, on accelerators with 80 GB. */
async function documentedTable(): Promise<string> {
  const lines: string[] = [];
  const methods = [
    {
      fields: { method: { type: 'lora', r: 16, target_modules: 'all-linear' }, quantize: 'keep' },
      title: 'LoRA, bfloat16',
    },
    { fields: { method: { type: 'lora', r: 16, target_modules: 'all-linear' }, quantize: 'nf4' }, title: 'LoRA, nf4' },
    { fields: { method: { type: 'full' } }, title: 'full, float32' },
  ];
  for (const shape of ['llama-7b', 'llama-70b', 'llama-405b'] as const)
    for (const { fields, title } of methods)
      for (const ranks of [8, 64, 1024]) {
        const recipe = recipeOf({ ...fields, train: { batch_size: 1024, gradient_checkpointing: true } });
        const rows = { ...recipe, train: { ...recipe.train, batch_size: ranks } };
        const plan: ClusterPlan = await planForRanks(rows, {
          ranks,
          shape,
          rowTokens: 1024,
          memory: 80e9,
          bandwidth: 50e9,
          flops: 3e14,
        });
        const memory = plan.stages.map(({ totalBytes }) => gigabytes(totalBytes));
        const [zero, , , three] = plan.stages;
        const traffic = [zero!, three!].map(({ trafficBytes }) => gigabytes(trafficBytes));
        const steps = [zero!, three!].map(({ stepS }) => stepS!.toFixed(stepS! < 10 ? 1 : 0));
        const cells = [
          llamaShapes[shape].title,
          title,
          ranks,
          ...memory,
          ...traffic,
          ...steps,
          plan.cheapest ?? 'none',
        ];
        lines.push(`| ${cells.join(' | ')} |`);
      }
  assert.equal(lines.length, 27);
  return lines.join('\n');
}

test('the table in docs/processes.md is what is planned', async () => {
  const table = await documentedTable();
  assert.ok(
    readFileSync(join(packageRoot, 'docs', 'processes.md'), 'utf8').includes(table),
    `docs/processes.md needs\n${table}`,
  );
});

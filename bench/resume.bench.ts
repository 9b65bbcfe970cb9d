/**
 * Runs that are killed with SIGKILL at random moments and resumed, compared with the same runs never killed: losses and weights must
 * be equal bit for bit. After every kill, each file under the final name of a checkpoint or of a result must be complete. First LoRA on
 * a real model; then every optimizer with every policy of layers (docs/methods/layerwise.md), on a tiny one.
 *   npm run proof:resume -- [--model FILE.gguf|DIR] [--kills 5] [--steps 30] [--choice-kills 2] [--seed 0]
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { GraftError } from '../src/base/index.ts';
import { readJson } from '../src/io/index.ts';
import { optimizers } from '../src/optim/index.ts';
import { golden } from '../test/support.ts';
import { killOften } from './killed-run.ts';
import {
  bothModels,
  graft,
  graftTrain,
  integers,
  report,
  type Trained,
  workFolder,
  writeBatches,
  writeRecipe,
} from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    kills: { type: 'string', default: '5' },
    steps: { type: 'string', default: '30' },
    'choice-kills': { type: 'string', default: '2' },
    seed: { type: 'string', default: '0' },
  },
});
const dir = workFolder();
const [steps, kills, choiceKills, seed] = [+args.steps, +args.kills, +args['choice-kills'], +args.seed];
const below = integers(seed + Date.now());
const total = { compared: 0, different: 0, files: 0, kills: 0, choices: 0 };
const weightsDiffer: string[] = [];

/** Counts the losses that differ between a run never killed and one that was, and compares the weights that they wrote. */
function compare(name: string, undisturbed: Trained, resumed: Trained, weights: readonly string[]): void {
  total.compared += Math.min(undisturbed.losses.length, resumed.losses.length);
  total.different += undisturbed.losses.filter((loss, i) => !Object.is(loss, resumed.losses[i])).length;
  const [one, other] = weights.map((file) => readFileSync(file));
  if (!one!.equals(other!)) weightsDiffer.push(name);
}

if (kills > 0) {
  const { ours, theirs } = bothModels(args.model);
  const { vocab_size: vocab } = readJson(join(theirs, 'config.json')) as { vocab_size: number };
  const batches = writeBatches(dir, { mode: 'ragged', rows: 1, steps, vocab, seed });
  const set = ['method.lora_dropout=0.1', 'train.schedule=cosine', 'train.warmup_steps=3', 'run.checkpoint_every=1'];
  const undisturbed = graftTrain({ model: ours, batches, dir: join(dir, 'undisturbed'), set });
  const out = join(dir, 'killed');
  const recipe = writeRecipe({ model: ours, batches, dir: out });
  const options = set.flatMap((pair) => ['--set', pair]);
  const { killedAt, filesRead } = await killOften({ recipe, options, out, kills, after: () => below(3000) });
  console.error(`LoRA, real model: killed after steps ${killedAt.join(', ')}`);
  total.files += filesRead;
  total.kills += killedAt.length;
  const resumed = graftTrain({ model: ours, batches, dir: out, set, resume: true });
  const weights = ['undisturbed', 'killed'].map((run) => join(dir, run, 'adapter', 'adapter_model.safetensors'));
  compare('LoRA', undisturbed, resumed, weights);
}

const policies: Readonly<Record<string, object | undefined>> = {
  'all layers': undefined,
  last: { policy: 'last', layers: 1 },
  lisa: { policy: 'lisa', layers: 1, every: 7 },
  badam: { policy: 'badam', every: 7 },
  'schedule by steps': {
    policy: 'schedule',
    rules: [
      { freeze: '0-1', step: 40 },
      { train: 1, step: 90 },
      { freeze: 'embeddings', step: 60, for: 50 },
    ],
  },
  'schedule by losses': {
    policy: 'schedule',
    rules: [
      { freeze: 0, plateau: 12 },
      { freeze: 'layers', gradient_norm: 0.9, window: 9, for: 30 },
    ],
  },
};
const file = join(dir, 'rows.jsonl');
const row = (r: number) => Array.from({ length: 4 + ((r * 11) % 27) }, (_, i) => 3 + ((r * 13 + i * 7) % 60));
writeFileSync(file, Array.from({ length: 48 }, (_, r) => `${JSON.stringify({ ids: row(r) })}\n`).join(''));
const settings: Readonly<Record<string, object>> = { galore: { rank: 4, update_proj_gap: 11 } };
const refused: string[] = [];

for (const type of Object.keys(optimizers)) {
  for (const [policy, layerwise] of Object.entries(policies)) {
    const name = `${type}, ${policy}`;
    const runDir = (kind: string) => join(dir, `${type} ${policy} ${kind}`);
    const recipeOf = (kind: string) => {
      const recipe = {
        model: golden('models', 'llama3'),
        method: [{ type: 'full' }, ...(layerwise ? [{ type: 'layerwise', ...layerwise }] : [])],
        data: { train: file, format: 'tokens', held_out: 6 },
        train: { optimizer: { type, ...settings[type] }, lr: 1e-3, batch_size: 4, steps: 1000, threads: 1 },
        eval: { every: 300, keep: 'last' },
        run: { dir: runDir(kind), checkpoint_every: 20 },
      };
      const path = `${runDir(kind)}.json`;
      writeFileSync(path, JSON.stringify(recipe));
      return path;
    };
    const train = (kind: string) => graft('train', recipeOf(kind), '--json') as unknown as Trained;
    let undisturbed: Trained;
    try {
      undisturbed = train('undisturbed');
    } catch (error) {
      refused.push(
        `${name}: ${
          GraftError.of(error)
            .message.split('\n')
            .find((line) => line.startsWith('graft: ')) ?? error
        }`,
      );
      continue;
    }
    const options = { options: [], out: runDir('killed'), after: () => below(400) };
    const { killedAt, filesRead } = await killOften({ recipe: recipeOf('killed'), kills: choiceKills, ...options });
    compare(
      name,
      undisturbed,
      train('killed'),
      ['undisturbed', 'killed'].map((kind) => join(runDir(kind), 'model', 'model.safetensors')),
    );
    total.files += filesRead;
    total.kills += killedAt.length;
    total.choices++;
    console.error(`${name}: killed after steps ${killedAt.join(', ')}`);
  }
}
for (const line of [...refused, ...weightsDiffer]) console.error(line);

const choices = Object.keys(optimizers).length * Object.keys(policies).length;
report(
  'resume',
  [
    { what: 'losses that differ', got: total.different, bar: 0, better: 'less' },
    { what: 'losses compared', got: total.compared, bar: (kills > 0 ? steps : 0) + 1000 * choices, better: 'more' },
    { what: 'runs whose weights differ', got: weightsDiffer.length, bar: 0, better: 'less' },
    { what: 'optimizers with policies of layers', got: total.choices, bar: choices, better: 'more' },
    { what: 'kills', got: total.kills, bar: kills + choiceKills * choices, better: 'more' },
  ],
  { files_found_whole: total.files, refused },
);

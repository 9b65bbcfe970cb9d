import { Command } from 'commander';
import { launch as launchRun } from '../session/index.ts';
import { readRecipe } from '../train/index.ts';
import { abortOnSignals, count, countOrNone, examples } from './shared.ts';
import { type RecipeFlags, recipeOptions, showTraining, withDevice } from './train.ts';

export const launch = () =>
  recipeOptions(
    new Command('launch')
      .description(
        'Fine-tune as a recipe says with several processes, each of which takes a share of every step. `graft train` does the same under torchrun, srun, mpirun and Kubeflow, which start the processes themselves.',
      )
      .option('--nproc <n>', 'processes on this machine; default: PET_NPROC_PER_NODE', count)
      .option('--nnodes <n>', 'machines, each with a launcher of its own; default: PET_NNODES, else 1', count)
      .option('--node-rank <n>', 'number of this machine, from 0; default: PET_NODE_RANK, else 0', countOrNone)
      .option(
        '--master <host:port>',
        'where the processes meet: on machine 0, at a free port; default: PET_MASTER_ADDR, on one machine any port',
      )
      .option(
        '--max-restarts <n>',
        'after a process ended unexpectedly, start all again from the last checkpoint, so many times; default: 0',
        countOrNone,
      )
      .option(
        '--timeout <seconds>',
        'how long a process waits for the others, to begin and in each step; default: 300',
        count,
      ),
  )
    .addHelpText(
      'after',
      examples(
        'graft launch --nproc 4 recipe.yaml',
        'graft launch --nproc 2 --max-restarts 3 recipe.yaml --json | tail -1',
        'graft launch --nproc 4 --nnodes 2 --node-rank 1 --master node0:29500 recipe.yaml',
      ),
    )
    .action(
      async (
        file: string,
        {
          nproc: ranks,
          nnodes: nodes,
          set,
          device,
          json,
          ...options
        }: {
          nproc?: number;
          nnodes?: number;
          nodeRank?: number;
          master?: string;
          maxRestarts?: number;
          timeout?: number;
        } & RecipeFlags,
      ) => {
        const recipe = readRecipe(file, withDevice(set, device));
        using stop = abortOnSignals('Stopping after this step, with a checkpoint (press again to stop at once)');
        await showTraining(launchRun({ recipe, ranks, nodes, ...options, signal: stop.signal }), json);
      },
    );

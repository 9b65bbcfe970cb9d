/** What a run has on the disk instead of in memory (ZeRO-Infinity, arXiv 2104.07857): files without names, which end with the process. */
import { statfsSync } from 'node:fs';
import { GraftError } from '../base/index.ts';
import { ScratchFile } from '../io/index.ts';
import { currentDevice, host } from '../tensor/index.ts';
import type { RunMemory } from './memory-plan.ts';
import type { Recipe } from './recipe.ts';

/** Linux's number of a file system in memory (statfs(2), TMPFS_MAGIC). */
const tmpfs = 0x01021994;

export class Offload implements Disposable {
  /** Where the files are. */
  readonly dir: string;
  /** For weights that no file has as they are computed with; undefined: weights are in memory. */
  readonly weights: ScratchFile | undefined;
  /** For the state of the optimizer; undefined: it is in memory. */
  readonly optimizer: ScratchFile | undefined;

  /** @throws GraftError 'usage' on a GPU, 'environment' where no file can be written */
  constructor({ train: { offload }, run }: Recipe) {
    this.dir = offload.dir ?? run.dir;
    const chosen = (['weights', 'optimizer'] as const).find((name) => offload[name]);
    if (chosen && currentDevice() !== host) {
      throw new GraftError(
        'usage',
        `a GPU computes with what is in its own memory, and ${chosen} are to be on the disk`,
        {
          place: `train.offload.${chosen}`,
          hint: 'Leave it out, or set train.device: cpu',
        },
      );
    }
    if (offload.weights) this.weights = new ScratchFile(this.dir);
    if (offload.optimizer) this.optimizer = new ScratchFile(this.dir);
  }

  /** What should be known before the first step. */
  notes({ weightsOnDiskMb, optimizerOnDiskMb }: RunMemory): string[] {
    const { weights, optimizer, dir } = this;
    if (!weights && !optimizer) return [];
    const copied =
      weights && weights.size > 0 ? `, ${Math.ceil(weights.size / 2 ** 20)} MB of them in a copy in ${dir}` : '';
    return [
      ...(weights ? [`frozen weights stay in files: ${weightsOnDiskMb} MB${copied}`] : []),
      ...(optimizer ? [`the state of the optimizer is in a file in ${dir}: ${optimizerOnDiskMb} MB`] : []),
      ...(statfsSync(dir).type === tmpfs
        ? [
            `${dir} is on a file system in memory (tmpfs), so that what is there takes memory: set train.offload.dir to a disk`,
          ]
        : []),
    ];
  }

  [Symbol.dispose](): void {
    this.weights?.[Symbol.dispose]();
    this.optimizer?.[Symbol.dispose]();
  }
}

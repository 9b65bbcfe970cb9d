import type { Model } from './model.ts';
import { namedModules } from './module.ts';
import { headsOf } from './sites.ts';

/**
 * A part of a model that is trained or frozen as a whole: a layer by its number, what comes before the layers, or what comes after
 * them (the last norm, a pooler, the output projection to the vocabulary).
 */
export type ModelPart = number | 'embeddings' | 'head';

/** The parts of a model, from its inputs to its outputs. */
export const modelParts = ({ layers }: Pick<Model, 'layers'>): readonly ModelPart[] => [
  'embeddings',
  ...Array(layers).keys(),
  'head',
];

const escaped = (path: string) => path.replaceAll('.', '\\.');

/**
 * Returns a function that tells the part of a parameter by its key: a path in the module tree, or `layers.N` as adapters name what they
 * add to layer N. It gives undefined for what is in no part: virtual tokens, matrices that layers share, the head of a task with labels.
 */
export function partsByKey(model: Model): (key: string) => ModelPart | undefined {
  const { sites, root, task } = model;
  const inLayer = new RegExp(`^(?:${escaped(sites.block).replace('*', '(\\d+)')}|layers\\.(\\d+))\\.`);
  const inTaskHead = (key: string) =>
    task.labels.length > 0 && headsOf(sites).some((path) => key === path || key.startsWith(`${path}.`));
  const paths = [...namedModules(root)].map(([path]) => path).filter((path) => path !== '');
  const firstLayer = paths.findIndex((path) => inLayer.test(`${path}.`));
  // Modules stand in the order of the forward pass.
  const outside = new Map(paths.map((path, i) => [path, i < firstLayer ? 'embeddings' : 'head'] as const));
  return (key) => {
    const layer = inLayer.exec(key);
    if (layer) return Number(layer[1] ?? layer[2]);
    if (inTaskHead(key)) return undefined;
    for (let end = key.lastIndexOf('.'); end > 0; end = key.lastIndexOf('.', end - 1)) {
      const part = outside.get(key.slice(0, end));
      if (part) return part;
    }
    return undefined;
  };
}

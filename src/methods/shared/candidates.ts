/** The modules of a model, as methods choose among them. */
import { Embedding, headsOf, type Model, namedModules, unwrapped } from '../../nn/index.ts';

/** A module of a model, with what selection needs to know about it. */
export interface Candidate {
  readonly path: string;
  readonly kind: 'linear' | 'embedding' | 'other';
  /** True for the output projection, which `all-linear` leaves out. */
  readonly head?: boolean;
  /** True inside the task's head, which is trained whole under every method: never a target. */
  readonly trained?: boolean;
}

/** Returns a test whether a path lies in the task's head, which is trained whole; by the end of a part, as for `modules_to_save`. */
export function inTrainedHead({ task, sites }: Model): (path: string) => boolean {
  const heads = task.labels.length > 0 ? headsOf(sites) : [];
  return (path) => path.split('.').some((part) => heads.some((head) => part.endsWith(head)));
}

/** Returns the modules of a model as candidates. */
export function candidatesOf(model: Model): Candidate[] {
  const { head } = model.sites;
  const isTrained = inTrainedHead(model);
  return [...namedModules(model.root)].map(([path, module]) => ({
    path,
    kind: isLinear(module) ? 'linear' : unwrapped(module) instanceof Embedding ? 'embedding' : 'other',
    head: path === head,
    trained: isTrained(path),
  }));
}

/** Whether a module is a linear layer or a wrapper of one. */
function isLinear(module: object): boolean {
  return 'inFeatures' in module && 'outFeatures' in module;
}

/** Where this process stands among those that work together: what launchers tell in environment variables. */
import { createHash } from 'node:crypto';
import { GraftError } from '../base/index.ts';

/** The place of a process among those that train together. */
export interface RankPlacement {
  /** Number of this process, from 0. */
  readonly rank: number;
  /** How many processes there are. */
  readonly size: number;
  /** Number of this process on its machine, from 0. */
  readonly localRank: number;
  /** How many of the processes are on this machine. */
  readonly localSize: number;
  /** Host and port of the key-value store at which the processes meet. */
  readonly master: { readonly host: string; readonly port: number };
  /** Whether rank 0 hosts that store; false: the launcher does. */
  readonly hostsStore: boolean;
  /** Name of the run, where its launcher gives one: processes of another run are refused. Otherwise ''. */
  readonly run: string;
  /** How often the launcher has restarted the processes: each attempt has its own keys. */
  readonly attempt: number;
  /** Milliseconds that a process waits for the others: to begin, and in each collective. */
  readonly timeout: number;
  /** What said so, for messages: `torchrun (RANK, WORLD_SIZE, …)`. */
  readonly source: string;
}

/** The processes that a node has to start, where variables describe the node and no process. */
export interface NodePlacement {
  readonly nodes: number;
  readonly nodeRank: number;
  /** How many processes a node has; undefined: it was not said. */
  readonly perNode: number | undefined;
  readonly master: { readonly host: string; readonly port: number } | undefined;
  readonly source: string;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** Milliseconds that a process waits for others where nothing says how long. */
export const defaultTimeout = 300_000;

/** The variable by which `graft launch` names a run all of whose processes it starts. */
export const runVariable = 'GRAFT_RUN_ID';

/** Port of the store where nothing says another; torch's default. */
const defaultPort = 29500;

const hint = 'Start every process with the same launcher, or unset the variables to train in one process';

const wrong = (problem: string, place: string, advice = hint) =>
  new GraftError('usage', problem, { place, hint: advice });

/** Reads variables of one launcher; remembers which, for messages. */
class Variables {
  readonly #env: Environment;
  readonly launcher: string;
  readonly used: string[] = [];

  constructor(env: Environment, launcher: string) {
    this.#env = env;
    this.launcher = launcher;
  }

  get source(): string {
    return `${this.launcher} (${this.used.join(', ')})`;
  }

  /** The value of a variable; an empty one counts as not set. */
  text(name: string): string | undefined {
    const value = this.#env[name]?.trim() || undefined;
    if (value !== undefined && !this.used.includes(name)) this.used.push(name);
    return value;
  }

  count(name: string, minimum = 0): number | undefined {
    const text = this.text(name);
    if (text === undefined) return undefined;
    const value = Number(text);
    if (Number.isInteger(value) && value >= minimum) return value;
    throw wrong(`must be an integer, ${minimum} or more, but is '${text}'`, name);
  }

  required(name: string, beside: string, minimum = 0): number {
    const value = this.count(name, minimum);
    if (value !== undefined) return value;
    throw wrong(`${beside} is set (${this.text(beside)}), but ${name} is not`, `environment of ${this.launcher}`);
  }

  /** MASTER_ADDR and MASTER_PORT. */
  master(fallback?: { readonly host: string; readonly port: number }): RankPlacement['master'] {
    const host = this.text('MASTER_ADDR') ?? fallback?.host;
    const port = this.count('MASTER_PORT', 1) ?? fallback?.port;
    if (host === undefined || port === undefined) {
      const missing = [...(host === undefined ? ['MASTER_ADDR'] : []), ...(port === undefined ? ['MASTER_PORT'] : [])];
      throw wrong(
        `there are several processes, but ${missing.join(' and ')} ${missing.length > 1 ? 'are' : 'is'} not set`,
        `environment of ${this.launcher}`,
        'Set MASTER_ADDR to the host of rank 0, and MASTER_PORT to a free port on it',
      );
    }
    if (port > 65535) throw wrong(`must be a port from 1 to 65535, but is ${port}`, 'MASTER_PORT');
    return { host, port };
  }

  /** The placement, checked. */
  placed(
    fields: Omit<RankPlacement, 'source' | 'run' | 'attempt' | 'hostsStore' | 'timeout'> & Partial<RankPlacement>,
  ): RankPlacement {
    const { rank, size, localRank, localSize } = fields;
    const outside = (name: string, value: number, of: string, count: number) =>
      wrong(`${name} is ${value}, but must be below ${of}, which is ${count}`, `environment of ${this.source}`);
    if (rank >= size) throw outside('the rank', rank, 'the number of processes', size);
    if (localRank >= localSize) throw outside('the local rank', localRank, 'the number of local processes', localSize);
    if (localSize > size)
      throw wrong(`there are ${localSize} local processes, but ${size} in all`, `environment of ${this.source}`);
    const timeout = 1000 * (this.count('GRAFT_TIMEOUT', 1) ?? defaultTimeout / 1000);
    return { run: '', attempt: 0, hostsStore: true, ...fields, timeout, source: this.source };
  }
}

/** A port from 20000 on that all processes of a job derive from its name. */
const portOf = (job: string): number => 20_000 + (createHash('sha256').update(job).digest().readUInt16BE() % 12_000);

/** torchrun, `graft launch`, Kubeflow's PyTorchJob, and whoever sets RANK and WORLD_SIZE. */
function fromRank(env: Environment): RankPlacement | undefined {
  if (env.RANK === undefined && env.WORLD_SIZE === undefined) return undefined;
  const elastic = env.TORCHELASTIC_RUN_ID !== undefined;
  const vars = new Variables(env, elastic ? 'torchrun' : env.LOCAL_RANK === undefined ? 'RANK' : 'a launcher');
  const [rank, size] = [vars.required('RANK', 'WORLD_SIZE'), vars.required('WORLD_SIZE', 'RANK', 1)];
  const localRank = vars.count('LOCAL_RANK') ?? 0;
  const localSize =
    vars.count('LOCAL_WORLD_SIZE', 1) ?? vars.count('LOCAL_SIZE', 1) ?? (env.LOCAL_RANK === undefined ? 1 : size);
  const attempt = vars.count('TORCHELASTIC_RESTART_COUNT') ?? 0;
  const run = vars.text(runVariable) ?? vars.text('TORCHELASTIC_RUN_ID') ?? '';
  const hostsStore = vars.text('TORCHELASTIC_USE_AGENT_STORE') !== 'True';
  const master = size > 1 || !hostsStore ? vars.master() : { host: '127.0.0.1', port: defaultPort };
  return vars.placed({ rank, size, localRank, localSize, master, run, attempt, hostsStore });
}

function fromOpenMpi(env: Environment): RankPlacement | undefined {
  if (env.OMPI_COMM_WORLD_RANK === undefined && env.OMPI_COMM_WORLD_SIZE === undefined) return undefined;
  const vars = new Variables(env, 'OpenMPI');
  const rank = vars.required('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE');
  const size = vars.required('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 1);
  const localRank = vars.required('OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_RANK');
  const localSize = vars.required('OMPI_COMM_WORLD_LOCAL_SIZE', 'OMPI_COMM_WORLD_RANK', 1);
  const job = vars.text('PMIX_NAMESPACE') ?? vars.text('OMPI_MCA_ess_base_jobid');
  // On one machine nothing more needs to be said.
  const local = localSize === size ? { host: '127.0.0.1', port: job ? portOf(job) : defaultPort } : undefined;
  return vars.placed({ rank, size, localRank, localSize, master: vars.master(local), run: job ?? '' });
}

/** The first host of a Slurm list: `node[003-010,12],gpu1` begins with node003. */
export function firstHost(list: string): string {
  const [, name = '', range, rest = ''] = /^([^,[]+)(?:\[([^\]]+)\])?([^,]*)/.exec(list.trim()) ?? [];
  return range === undefined ? name : `${name}${/^\d+/.exec(range)?.[0] ?? ''}${rest}`;
}

/** How many processes each node has: `4(x2),3` says 4, 4 and 3. */
export const tasksPerNode = (text: string): number[] =>
  text.split(',').flatMap((part) => {
    const [, tasks, times] = /^(\d+)(?:\(x(\d+)\))?$/.exec(part.trim()) ?? [];
    return Array.from({ length: Number(times ?? 1) }, () => Number(tasks));
  });

/** A process that `srun` started; in a batch script itself, which is no step, the variables of the job describe nobody. */
function fromSlurm(env: Environment): RankPlacement | undefined {
  if (env.SLURM_PROCID === undefined || env.SLURM_STEP_ID === undefined) return undefined;
  const vars = new Variables(env, 'Slurm');
  const rank = vars.required('SLURM_PROCID', 'SLURM_STEP_ID');
  const size = vars.count('SLURM_STEP_NUM_TASKS', 1) ?? vars.required('SLURM_NTASKS', 'SLURM_PROCID', 1);
  const localRank = vars.required('SLURM_LOCALID', 'SLURM_PROCID');
  const node = vars.required('SLURM_NODEID', 'SLURM_PROCID');
  const layout = vars.text('SLURM_STEP_TASKS_PER_NODE') ?? vars.text('SLURM_TASKS_PER_NODE') ?? String(size);
  const localSize = tasksPerNode(layout)[node];
  if (localSize === undefined || !Number.isInteger(localSize))
    throw wrong(`the layout of the tasks, '${layout}', has no node ${node}`, `environment of ${vars.source}`);
  const nodes = vars.text('SLURM_STEP_NODELIST') ?? vars.text('SLURM_JOB_NODELIST') ?? vars.text('SLURM_NODELIST');
  const job = `${vars.text('SLURM_JOB_ID') ?? vars.text('SLURM_JOBID') ?? ''}.${vars.text('SLURM_STEP_ID')}`;
  const meeting = nodes === undefined ? undefined : { host: firstHost(nodes), port: portOf(job) };
  // The parts of a heterogeneous job have names of their own.
  const run = env.SLURM_HET_SIZE === undefined ? job : '';
  return vars.placed({ rank, size, localRank, localSize, master: vars.master(meeting), run });
}

/** The variables PET_… of Kubeflow Trainer and of torchrun: they describe a node, on which a launcher has to start the processes. */
export function nodeEnvironment(
  env: Readonly<Record<string, string | undefined>> = process.env,
): NodePlacement | undefined {
  const vars = new Variables(env, 'Kubeflow (PET_…)');
  const endpoint = vars.text('PET_RDZV_ENDPOINT');
  const count = vars.text('PET_NNODES');
  if (count === undefined && vars.text('PET_NODE_RANK') === undefined) return undefined;
  if (endpoint !== undefined || count?.includes(':'))
    throw wrong(
      `${endpoint === undefined ? `PET_NNODES is ${count}` : `PET_RDZV_ENDPOINT is ${endpoint}`}, so the number of nodes may change, and only torchrun can start such a run`,
      'environment',
      'Run `torchrun --no-python graft train recipe.yaml`',
    );
  const [nodes, nodeRank] = [vars.required('PET_NNODES', 'PET_NODE_RANK', 1), vars.count('PET_NODE_RANK') ?? 0];
  const names = ['PET_NPROC_PER_NODE', 'PET_N_PROC_PER_NODE'] as const; // of Trainer v2, and of the training operator (v1)
  const [newer, older] = names.map((name) => vars.text(name));
  if (newer !== undefined && older !== undefined && newer !== older)
    throw wrong(`is ${newer}, but ${names[1]} is ${older}`, names[0], 'Set one of them');
  const given = newer === undefined ? names[1] : names[0];
  // auto: one process, which uses every core.
  const perNode = (newer ?? older) === 'auto' ? 1 : vars.count(given, 1);
  const port = vars.count('PET_MASTER_PORT', 1) ?? defaultPort;
  const host = vars.text('PET_MASTER_ADDR');
  if (nodeRank >= nodes) throw wrong(`is ${nodeRank}, but there are ${nodes} nodes`, 'PET_NODE_RANK');
  if (nodes > 1 && host === undefined)
    throw wrong(`PET_NNODES is ${nodes}, but PET_MASTER_ADDR is not set`, 'environment');
  const master = host === undefined ? undefined : { host, port };
  return { nodes, nodeRank, perNode, master, source: vars.source };
}

/** One process on each node of Kubeflow Trainer v2 needs no launcher. */
function fromNode(env: Environment): RankPlacement | undefined {
  const node = nodeEnvironment(env);
  if (!node) return undefined;
  const { nodes, nodeRank, perNode = 1, master = { host: '127.0.0.1', port: defaultPort }, source } = node;
  if (perNode > 1)
    throw wrong(
      `${perNode} processes are wanted on each node, and this is one process`,
      `environment of ${source}`,
      'Run `graft launch recipe.yaml` instead of `graft train`: it starts them',
    );
  const vars = new Variables(env, source);
  return { ...vars.placed({ rank: nodeRank, size: nodes, localRank: 0, localSize: 1, master }), source };
}

/**
 * Returns the place of this process as its launcher tells it: torchrun (with its own store too), `graft launch`, Kubeflow's PyTorchJob
 * and Trainer, OpenMPI, or Slurm's srun. Undefined: nothing says that there are other processes.
 * @throws GraftError 'usage' for variables that are missing, contradict each other, or have no meaning, by name
 */
export function launchEnvironment(
  env: Readonly<Record<string, string | undefined>> = process.env,
): RankPlacement | undefined {
  const ranked = fromRank(env);
  // A launcher that counts local ranks was started by the others, if there are any; RANK alone was set by hand, or by a pod.
  if (ranked && env.LOCAL_RANK !== undefined) return ranked;
  const managed = fromOpenMpi(env) ?? fromSlurm(env);
  const [first, second] = [ranked, managed].filter((placement) => placement !== undefined);
  if (first && second && (first.rank !== second.rank || first.size !== second.size)) {
    const told = ({ rank, size, source }: RankPlacement) => `${source} says rank ${rank} of ${size}`;
    throw wrong(`${told(first)}, but ${told(second)}`, 'environment');
  }
  return first ?? fromNode(env);
}

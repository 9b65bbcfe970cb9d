import assert from 'node:assert/strict';
import test from 'node:test';
import { GraftError } from '../base/index.ts';
import { firstHost, launchEnvironment, nodeEnvironment, tasksPerNode } from './launch-environment.ts';

const torchrun = {
  RANK: '5',
  LOCAL_RANK: '1',
  WORLD_SIZE: '8',
  LOCAL_WORLD_SIZE: '4',
  GROUP_RANK: '1',
  MASTER_ADDR: 'node1',
  MASTER_PORT: '29400',
  TORCHELASTIC_RESTART_COUNT: '2',
  TORCHELASTIC_RUN_ID: 'none',
  TORCHELASTIC_USE_AGENT_STORE: 'True',
};
const slurm = {
  SLURM_PROCID: '5',
  SLURM_LOCALID: '1',
  SLURM_NODEID: '1',
  SLURM_NTASKS: '7',
  SLURM_STEP_ID: '0',
  SLURM_JOB_ID: '4711',
  SLURM_STEP_TASKS_PER_NODE: '4,3',
  SLURM_JOB_NODELIST: 'node[003-004]',
};
const openMpi = {
  OMPI_COMM_WORLD_RANK: '1',
  OMPI_COMM_WORLD_SIZE: '2',
  OMPI_COMM_WORLD_LOCAL_RANK: '1',
  OMPI_COMM_WORLD_LOCAL_SIZE: '2',
  PMIX_NAMESPACE: 'prterun-node1-12@1',
};
const pytorchJob = {
  RANK: '2',
  WORLD_SIZE: '4',
  MASTER_ADDR: 'job-master-0',
  MASTER_PORT: '23456',
  PYTHONUNBUFFERED: '1',
};
const trainer = {
  PET_NNODES: '3',
  PET_NODE_RANK: '2',
  PET_NPROC_PER_NODE: '1',
  PET_MASTER_ADDR: 'job-node-0-0',
  PET_MASTER_PORT: '29400',
};

/** The facts of a placement that a launcher decides. */
function placed(env: Record<string, string>) {
  const placement = launchEnvironment(env);
  assert.ok(placement);
  const { rank, size, localRank, localSize, master, hostsStore, attempt } = placement;
  return [rank, size, localRank, localSize, `${master.host}:${master.port}`, hostsStore, attempt];
}

test('every launcher says which process this is', () => {
  assert.deepEqual(placed(torchrun), [5, 8, 1, 4, 'node1:29400', false, 2]);
  assert.deepEqual(placed(pytorchJob), [2, 4, 0, 1, 'job-master-0:23456', true, 0]);
  assert.deepEqual(placed(trainer), [2, 3, 0, 1, 'job-node-0-0:29400', true, 0]);
  const [rank, size, localRank, localSize, meeting, hosts] = placed(slurm);
  assert.deepEqual([rank, size, localRank, localSize, hosts], [5, 7, 1, 3, true]);
  assert.match(String(meeting), /^node003:[23]\d{4}$/);
  const mpi = placed(openMpi);
  assert.deepEqual(mpi.slice(0, 4), [1, 2, 1, 2]);
  assert.match(String(mpi[4]), /^127\.0\.0\.1:[23]\d{4}$/);
});

test('the processes of one job meet at one port, those of another job at another', () => {
  const port = (env: Record<string, string>) => launchEnvironment({ ...slurm, ...env })!.master.port;
  assert.equal(port({ SLURM_PROCID: '0', SLURM_NODEID: '0', SLURM_LOCALID: '0' }), port({}));
  assert.notEqual(port({ SLURM_JOB_ID: '4712' }), port({}));
  assert.notEqual(port({ SLURM_STEP_ID: '1' }), port({}));
});

test('MASTER_ADDR, MASTER_PORT and GRAFT_TIMEOUT take precedence over what a launcher leaves open', () => {
  const { master, timeout } = launchEnvironment({
    ...slurm,
    MASTER_ADDR: 'other',
    MASTER_PORT: '1234',
    GRAFT_TIMEOUT: '7',
  })!;
  assert.deepEqual([master, timeout], [{ host: 'other', port: 1234 }, 7000]);
  assert.equal(launchEnvironment(slurm)!.timeout, 300_000);
});

test('without a launcher there is one process', () => {
  assert.equal(launchEnvironment({}), undefined);
  // A batch script has the variables of its job, but srun did not start it.
  assert.equal(launchEnvironment({ ...slurm, SLURM_STEP_ID: undefined }), undefined);
});

test('an inner launcher counts: torchrun in a Slurm step, mpirun in one', () => {
  assert.equal(launchEnvironment({ ...slurm, ...torchrun })!.size, 8);
  assert.equal(launchEnvironment({ ...slurm, ...openMpi })!.size, 2);
});

test('a node of Kubeflow Trainer says what has to be started on it', () => {
  const node = nodeEnvironment({ ...trainer, PET_NPROC_PER_NODE: '4' })!;
  assert.deepEqual([node.nodes, node.nodeRank, node.perNode, node.master?.host], [3, 2, 4, 'job-node-0-0']);
  assert.equal(nodeEnvironment({ ...trainer, PET_NPROC_PER_NODE: 'auto' })!.perNode, 1);
  // The training operator (v1) writes the name differently.
  const { PET_NPROC_PER_NODE: _, ...older } = trainer;
  assert.equal(nodeEnvironment({ ...older, PET_N_PROC_PER_NODE: '2' })!.perNode, 2);
  assert.equal(nodeEnvironment({}), undefined);
});

test('variables that are missing or contradict each other are named', () => {
  const wrong: [Record<string, string | undefined>, RegExp][] = [
    [{ RANK: '0' }, /RANK is set \(0\), but WORLD_SIZE is not/],
    [{ WORLD_SIZE: '2' }, /WORLD_SIZE is set \(2\), but RANK is not/],
    [{ ...pytorchJob, RANK: 'two' }, /RANK: must be an integer, 0 or more, but is 'two'/],
    [{ ...pytorchJob, WORLD_SIZE: '0' }, /WORLD_SIZE: must be an integer, 1 or more/],
    [{ ...pytorchJob, RANK: '4' }, /the rank is 4, but must be below the number of processes, which is 4/],
    [{ ...pytorchJob, MASTER_ADDR: undefined }, /MASTER_ADDR is not set/],
    [{ ...pytorchJob, MASTER_ADDR: '', MASTER_PORT: undefined }, /MASTER_ADDR and MASTER_PORT are not set/],
    [{ ...pytorchJob, MASTER_PORT: '99999' }, /MASTER_PORT: must be a port from 1 to 65535, but is 99999/],
    [
      { ...torchrun, LOCAL_RANK: '4' },
      /the local rank is 4, but must be below the number of local processes, which is 4/,
    ],
    [{ ...torchrun, LOCAL_WORLD_SIZE: '9' }, /there are 9 local processes, but 8 in all/],
    [{ ...pytorchJob, ...slurm }, /RANK.* says rank 2 of 4, but Slurm .* says rank 5 of 7/],
    [
      { ...openMpi, OMPI_COMM_WORLD_SIZE: undefined },
      /OMPI_COMM_WORLD_RANK is set \(1\), but OMPI_COMM_WORLD_SIZE is not/,
    ],
    [
      { ...openMpi, OMPI_COMM_WORLD_LOCAL_SIZE: '2', OMPI_COMM_WORLD_SIZE: '3' },
      /MASTER_ADDR and MASTER_PORT are not set/,
    ],
    [{ ...slurm, SLURM_LOCALID: undefined }, /SLURM_PROCID is set \(5\), but SLURM_LOCALID is not/],
    [{ ...slurm, SLURM_NODEID: '2' }, /the layout of the tasks, '4,3', has no node 2/],
    [
      { ...trainer, PET_NPROC_PER_NODE: '4' },
      /4 processes are wanted on each node, and this is one process.*graft launch/,
    ],
    [{ ...trainer, PET_NNODES: '1:3' }, /PET_NNODES is 1:3, so the number of nodes may change.*torchrun/],
    [{ PET_RDZV_ENDPOINT: 'job:29400', PET_NNODES: '1:3' }, /PET_RDZV_ENDPOINT is job:29400/],
    [{ ...trainer, PET_N_PROC_PER_NODE: '2' }, /PET_NPROC_PER_NODE: is 1, but PET_N_PROC_PER_NODE is 2/],
    [{ ...trainer, PET_NODE_RANK: '3' }, /PET_NODE_RANK: is 3, but there are 3 nodes/],
    [{ ...trainer, PET_NNODES: undefined }, /PET_NODE_RANK is set \(2\), but PET_NNODES is not/],
    [{ ...trainer, PET_MASTER_ADDR: undefined }, /PET_NNODES is 3, but PET_MASTER_ADDR is not set/],
    [{ ...trainer, GRAFT_TIMEOUT: '0' }, /GRAFT_TIMEOUT: must be an integer, 1 or more/],
  ];
  for (const [env, why] of wrong) {
    assert.throws(
      () => launchEnvironment(env),
      (error) => error instanceof GraftError && error.kind === 'usage' && why.test(error.message),
      JSON.stringify(env),
    );
  }
  assert.equal(wrong.length, 23);
});

test('lists of Slurm', () => {
  assert.deepEqual(['node[003-010,12],gpu1', 'gpu1,node2', 'a[1,3]b', 'rack1-[07]', 'single'].map(firstHost), [
    'node003',
    'gpu1',
    'a1b',
    'rack1-07',
    'single',
  ]);
  assert.deepEqual(tasksPerNode('4(x2),3'), [4, 4, 3]);
});

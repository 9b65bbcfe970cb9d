/**
 * The manifests under examples/cluster: they have the form that Slurm and Kubeflow ask for, their commands are commands of Graft, and what
 * the launcher then sets gives every process its place.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { parseAllDocuments } from 'yaml';
import { z } from 'zod';
import { packageRoot } from '../../src/base/index.ts';
import { program } from '../../src/cli/main.ts';
import { launchEnvironment, nodeEnvironment } from '../../src/distributed/index.ts';

const folder = join(packageRoot, 'examples', 'cluster');
const text = (name: string) => readFileSync(join(folder, name), 'utf8');

/** Asserts that a command line is `graft COMMAND`, with options that the command has and a recipe. */
function requireCommand([name, command, ...args]: readonly string[]): void {
  assert.equal(name, 'graft');
  const found = program().commands.find((each) => each.name() === command);
  assert.ok(found, `graft ${command}`);
  const { operands, unknown } = found.parseOptions(args);
  assert.deepEqual(unknown, []);
  assert.equal(operands.length, 1, `the recipe in ${args}`);
}

// Kubernetes' names and quantities; of its pod only the fields that are used here.
const name = z
  .string()
  .regex(/^[a-z]([-a-z0-9]*[a-z0-9])?$/)
  .max(63);
const metadata = z.strictObject({ name, labels: z.record(z.string(), z.string()).optional() });
const amounts = z.strictObject({
  cpu: z.string().regex(/^\d+m?$/),
  memory: z.string().regex(/^\d+(Ki|Mi|Gi|Ti)$/),
});
const resources = z.strictObject({ requests: amounts, limits: amounts });
const container = z.strictObject({
  name,
  image: z.string().min(1),
  command: z.array(z.string()).min(1),
  resources: resources.optional(),
  volumeMounts: z.array(z.strictObject({ name, mountPath: z.string().startsWith('/') })),
});
const volume = z.strictObject({ name, persistentVolumeClaim: z.strictObject({ claimName: name }) });
const podOf = (containerName: string) =>
  z
    .strictObject({ containers: z.array(container).length(1), volumes: z.array(volume) })
    .refine(({ containers }) => containers[0]!.name === containerName, `the container is called ${containerName}`)
    .refine(
      ({ containers, volumes }) =>
        containers[0]!.volumeMounts.every((mount) => volumes.some((each) => each.name === mount.name)),
      'a volume is mounted that the pod does not have',
    );

// kubeflow.org/v1: PyTorchJobSpec, ReplicaSpec and RunPolicy of the training operator.
const replicas = z.strictObject({
  replicas: z.int().positive(),
  restartPolicy: z.enum(['Always', 'OnFailure', 'Never', 'ExitCode']),
  template: z.strictObject({ spec: podOf('pytorch') }),
});
const pytorchJob = z.strictObject({
  apiVersion: z.literal('kubeflow.org/v1'),
  kind: z.literal('PyTorchJob'),
  metadata,
  spec: z.strictObject({
    runPolicy: z.strictObject({
      backoffLimit: z.int().nonnegative(),
      cleanPodPolicy: z.enum(['All', 'Running', 'None']),
    }),
    pytorchReplicaSpecs: z.strictObject({ Master: replicas.extend({ replicas: z.literal(1) }), Worker: replicas }),
  }),
});

// trainer.kubeflow.org/v1alpha1: TrainingRuntimeSpec with a JobSet as template, and TrainJobSpec.
const step = 'trainer.kubeflow.org/trainjob-ancestor-step';
const runtime = z.strictObject({
  apiVersion: z.literal('trainer.kubeflow.org/v1alpha1'),
  kind: z.literal('TrainingRuntime'),
  metadata,
  spec: z.strictObject({
    mlPolicy: z.strictObject({ numNodes: z.int().positive(), torch: z.strictObject({}) }),
    template: z.strictObject({
      spec: z.strictObject({
        replicatedJobs: z.tuple([
          z.strictObject({
            name: z.literal('node'),
            template: z.strictObject({
              metadata: z.strictObject({ labels: z.strictObject({ [step]: z.literal('trainer') }) }),
              spec: z.strictObject({ template: z.strictObject({ spec: podOf('node') }) }),
            }),
          }),
        ]),
      }),
    }),
  }),
});
const trainJob = z.strictObject({
  apiVersion: z.literal('trainer.kubeflow.org/v1alpha1'),
  kind: z.literal('TrainJob'),
  metadata,
  spec: z.strictObject({
    runtimeRef: z.strictObject({
      apiGroup: z.literal('trainer.kubeflow.org'),
      kind: z.enum(['TrainingRuntime', 'ClusterTrainingRuntime']),
      name,
    }),
    trainer: z.strictObject({
      numNodes: z.int().positive(),
      numProcPerNode: z.int().positive(),
      resourcesPerNode: resources,
    }),
  }),
});

const documents = (file: string): unknown[] =>
  parseAllDocuments(text(file)).map((document) => {
    assert.deepEqual(document.errors, [], file);
    return document.toJS();
  });

/** Every field of a document taken away, one at a time. */
function* shortened(value: unknown): Generator<unknown> {
  if (Array.isArray(value))
    for (const [i, item] of value.entries()) for (const less of shortened(item)) yield value.with(i, less);
  else if (typeof value === 'object' && value !== null)
    for (const [key, item] of Object.entries(value)) {
      const { [key]: _, ...rest } = value as Record<string, unknown>;
      yield rest;
      for (const less of shortened(item)) yield { ...value, [key]: less };
    }
}

test('there is a manifest for each launcher, and no other file', () => {
  assert.deepEqual(readdirSync(folder).sort(), ['kubeflow-v1.yaml', 'kubeflow-v2.yaml', 'slurm.sbatch']);
});

test('Kubeflow v1: a PyTorchJob whose pods are one process each', () => {
  const all = documents('kubeflow-v1.yaml');
  assert.equal(all.length, 1);
  const { Master, Worker } = pytorchJob.parse(all[0]).spec.pytorchReplicaSpecs;
  const size = Master.replicas + Worker.replicas;
  for (const { template } of [Master, Worker]) requireCommand(template.spec.containers[0]!.command);
  const ranks = Array.from({ length: size }, (_, rank) => {
    const env = { RANK: String(rank), WORLD_SIZE: String(size), MASTER_ADDR: 'graft-master-0', MASTER_PORT: '23456' };
    const placement = launchEnvironment(env)!;
    return [placement.rank, placement.size, placement.localSize];
  });
  assert.deepEqual(
    ranks,
    [0, 1, 2, 3].map((rank) => [rank, 4, 1]),
  );
});

test('Kubeflow v2: a runtime and a job of it; graft launch starts the processes of a node', () => {
  const all = documents('kubeflow-v2.yaml');
  assert.equal(all.length, 2);
  const [given, job] = [runtime.parse(all[0]), trainJob.parse(all[1])];
  assert.equal(job.spec.runtimeRef.name, given.metadata.name);
  const [{ template }] = given.spec.template.spec.replicatedJobs;
  const [{ command }] = template.spec.template.spec.containers as [z.infer<typeof container>];
  requireCommand(command);
  assert.equal(command[1], 'launch', 'several processes on a node need a launcher');
  const { numNodes, numProcPerNode } = job.spec.trainer;
  assert.equal(given.spec.mlPolicy.numNodes, numNodes);
  const node = nodeEnvironment({
    PET_NNODES: String(numNodes),
    PET_NODE_RANK: '1',
    PET_NPROC_PER_NODE: String(numProcPerNode),
    PET_MASTER_ADDR: 'graft-node-0-0.graft',
    PET_MASTER_PORT: '29400',
  })!;
  assert.deepEqual([node.nodes, node.nodeRank, node.perNode], [2, 1, 4]);
});

test('the schemas refuse a manifest in which something is missing', () => {
  // What Kubernetes does not ask for, and the schemas neither.
  const optional = new Set(['resources']);
  let refused = 0;
  for (const [document, schema] of [
    [documents('kubeflow-v1.yaml')[0], pytorchJob],
    [documents('kubeflow-v2.yaml')[0], runtime],
    [documents('kubeflow-v2.yaml')[1], trainJob],
  ] as const) {
    for (const less of shortened(document)) {
      const isOptional = [...optional].some(
        (key) => JSON.stringify(document).split(`"${key}"`).length > JSON.stringify(less).split(`"${key}"`).length,
      );
      if (isOptional) continue;
      assert.ok(!schema.safeParse(less).success, JSON.stringify(less));
      refused++;
    }
  }
  assert.ok(refused >= 80, `${refused} fields`);
});

test('Slurm: a batch script that sh reads, whose options sbatch has, and whose tasks find their places', () => {
  const script = text('slurm.sbatch');
  const { status, stderr } = spawnSync('sh', ['-n', join(folder, 'slurm.sbatch')], { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  assert.ok(script.startsWith('#!/bin/sh\n'));
  const lines = script.split('\n');
  // sbatch reads no option behind the first command.
  const firstCommand = lines.findIndex((line) => line !== '' && !line.startsWith('#'));
  const options = new Map<string, string>();
  for (const [i, line] of lines.entries()) {
    if (!line.startsWith('#SBATCH')) continue;
    const [, option, value] = /^#SBATCH --([a-z-]+)=(\S+)$/.exec(line) ?? assert.fail(line);
    assert.ok(i < firstCommand, line);
    options.set(option!, value!);
  }
  const forms: Readonly<Record<string, RegExp>> = {
    'job-name': /^[\w-]+$/,
    nodes: /^\d+$/,
    'ntasks-per-node': /^\d+$/,
    'cpus-per-task': /^\d+$/,
    time: /^\d+:\d\d:\d\d$/,
    output: /%j/,
    signal: /^TERM@\d+$/,
  };
  assert.deepEqual([...options.keys()].sort(), Object.keys(forms).sort());
  for (const [option, value] of options) assert.match(value, forms[option]!, option);

  const [, command] = /^exec srun (?:--\S+ )+(graft .*)$/m.exec(script) ?? assert.fail('no srun');
  requireCommand(command!.split(' '));
  const [nodes, perNode] = [Number(options.get('nodes')), Number(options.get('ntasks-per-node'))];
  const size = nodes * perNode;
  const ranks = Array.from({ length: size }, (_, rank) => {
    const placement = launchEnvironment({
      SLURM_PROCID: String(rank),
      SLURM_STEP_ID: '0',
      SLURM_NTASKS: String(size),
      SLURM_LOCALID: String(rank % perNode),
      SLURM_NODEID: String(Math.floor(rank / perNode)),
      SLURM_TASKS_PER_NODE: `${perNode}(x${nodes})`,
      SLURM_JOB_NODELIST: 'node[01-02]',
      SLURM_JOB_ID: '42',
    })!;
    assert.equal(placement.master.host, 'node01');
    return [placement.rank, placement.localRank, placement.localSize];
  });
  assert.deepEqual(
    ranks,
    Array.from({ length: 8 }, (_, rank) => [rank, rank % 4, 4]),
  );
});

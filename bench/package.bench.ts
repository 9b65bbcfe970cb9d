/**
 * The package as a user gets it: packed, installed by npm from the registry into an empty project, compiled against, and run, with the
 * Node.js of this system as well as with Node.js 24. Needs the network.
 *   npm run proof:package
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { packageRoot } from '../src/base/index.ts';
import { tinyModel } from '../test/samples/tiny.ts';
import { buildPackage } from '../tools/build.ts';
import { type Bar, report, round, workFolder } from './support.ts';

/** A program in TypeScript, as a user would write it: its last line of output is JSON. */
const program = `import { type OneTaskRecipe, type RowInput, Session } from 'graft-llm';
import { createOptimizer, loadModel, startEngine } from 'graft-llm/engine';

const [model = '', dir = ''] = process.argv.slice(2);
const data = Array.from({ length: 32 }, (_, i): RowInput => ({ prompt: \`Is \${i} even?\`, completion: i % 2 ? ' no' : ' yes' }));
const recipe: OneTaskRecipe = { model, method: { type: 'lora' }, data, train: { lr: 1e-2, epochs: 3 }, run: { dir } };
await using session = new Session({ log: () => {} });
const { losses, adapter } = await session.train(recipe);
await using loaded = await session.load(model, { adapters: { numbers: adapter } });
const { text } = await loaded.generate('Is 4 even?', { adapter: 'numbers', maxNewTokens: 4 });
console.log(JSON.stringify({ losses, text }));
export const parts = { createOptimizer, loadModel, startEngine };
`;
const tsconfig = {
  compilerOptions: { strict: true, module: 'nodenext', target: 'esnext', types: ['node'], noEmit: true },
};

const manifest = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as {
  version: string;
  devDependencies: Record<string, string>;
};

/** Returns the folder of the first Node.js in PATH that is not a package's. */
function systemNode(): string | undefined {
  const folders = (process.env.PATH ?? '').split(delimiter);
  return folders.find((folder) => !folder.includes('node_modules') && existsSync(join(folder, 'node')));
}

/** Runs a command in `cwd` with the Node.js of the folder `bin`. @throws Error with its output where it fails */
function run(bin: string, cwd: string, command: string, ...args: string[]): { stdout: string; all: string } {
  const outside = (process.env.PATH ?? '').split(delimiter).filter((folder) => !folder.includes('node_modules'));
  const env = { ...process.env, PATH: [bin, ...outside].join(delimiter) };
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, env, encoding: 'utf8' });
  if (error || status !== 0) throw new Error(`${[command, ...args].join(' ')}: ${error ?? stdout + stderr}`);
  return { stdout, all: stdout + stderr };
}

const lastLine = (text: string) => text.trim().split('\n').at(-1)!;

const work = workFolder();
const dist = join(work, 'dist');
buildPackage(dist);
const own = dirname(process.execPath);
const archive = join(work, lastLine(run(own, work, 'npm', 'pack', dist, '--silent').stdout));
const model = tinyModel(join(work, 'model'));

/** Does with one Node.js what a user does. Returns the figures. */
function tryWith(bin: string) {
  const version = run(bin, work, 'node', '--version').stdout.trim();
  const project = join(work, `project-${version}`);
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), JSON.stringify({ private: true, type: 'module' }));
  const warningsOf = (text: string) => text.split('\n').filter((line) => /^npm warn/i.test(line));
  const warnings = warningsOf(run(bin, project, 'npm', 'install', archive).all);
  console.log(`Node.js ${version}: installed; ${warnings.length} warnings of npm`);
  for (const warning of warnings) console.log(`  ${warning}`);

  const tools = ['typescript', '@types/node'].map((name) => `${name}@${manifest.devDependencies[name]}`);
  run(bin, project, 'npm', 'install', '--save-dev', ...tools);
  writeFileSync(join(project, 'program.ts'), program);
  writeFileSync(join(project, 'tsconfig.json'), JSON.stringify(tsconfig));
  run(bin, project, 'npx', 'tsc', '-p', '.');

  const printed = run(bin, project, 'npx', 'graft', '--version').stdout.trim();
  if (printed !== manifest.version) throw new Error(`graft --version prints ${printed}, not ${manifest.version}`);
  const doctor = JSON.parse(run(bin, project, 'npx', 'graft', 'doctor', '--json').stdout) as { gemm?: object };
  if (!doctor.gemm) throw new Error(`graft doctor --json prints ${JSON.stringify(doctor)}`);
  // The command without npx, which would put the Node.js of the package into PATH.
  const recipe = { model, method: { type: 'lora' }, data: { train: 'rows.jsonl' }, run: { dir: 'trained' } };
  writeFileSync(join(project, 'recipe.yaml'), JSON.stringify(recipe));
  writeFileSync(join(project, 'rows.jsonl'), JSON.stringify({ text: 'A row to learn.' }));
  const command = join('node_modules', 'graft-llm', 'bin', 'graft.js');
  const trained = lastLine(run(bin, project, 'node', command, 'train', 'recipe.yaml', '--json').stdout);
  if (!existsSync((JSON.parse(trained) as { adapter: string }).adapter))
    throw new Error(`graft train prints ${trained}`);

  const { losses } = JSON.parse(
    lastLine(run(bin, project, 'npx', 'node', 'program.ts', model, join(project, 'out')).stdout),
  ) as { losses: number[] };
  const share = losses.at(-1)! / losses[0]!;
  console.log(
    `Node.js ${version}: a program compiles and trains, ${losses.length} steps to ${round(share)} of the first loss`,
  );
  return { version, warnings, losses: losses.length, share };
}

const system = systemNode();
const results = [...new Set([...(system ? [system] : []), own])].map(tryWith);
report(
  'package',
  results.flatMap(({ version, warnings, share }): Bar[] => [
    {
      what: `${version}: warnings of npm`,
      got: warnings.length,
      bar: 0,
      better: 'less',
    },
    { what: `${version}: last loss as a share of the first`, got: share, bar: 0.9, better: 'less' },
  ]),
  { version: manifest.version, results },
);

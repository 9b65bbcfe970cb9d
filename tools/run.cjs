// Runs a TypeScript file with the Node of the checkout (its devDependency `node`), and installs the packages first if they are
// missing. Plain JavaScript without new syntax, because it must start on any Node.
//   node tools/run.cjs examples/quickstart.ts [arguments]
const { spawnSync } = require('node:child_process');
const { existsSync } = require('node:fs');
const { cpus } = require('node:os');
const { join } = require('node:path');

const root = join(__dirname, '..');
const node = join(root, 'node_modules', 'node', 'bin', 'node');

function run(command, args, options) {
  const result = spawnSync(command, args, Object.assign({ stdio: 'inherit', cwd: root }, options));
  if (result.error) console.error(`${command} does not run: ${result.error.message}. If npm blocks install scripts, allow node's.`);
  if (result.status !== 0) process.exit(result.status === null ? 1 : result.status);
}

if (!existsSync(node) || !existsSync(join(root, 'node_modules', 'zod'))) {
  console.error('Installing packages (npm ci)');
  run('npm', ['ci', '--no-audit', '--no-fund'], { stdio: ['ignore', 2, 2] });
}
// The compile cache keeps files without their types for the next start.
const cache = { NODE_COMPILE_CACHE: join(root, 'node_modules', '.cache', 'node') };
const args = process.argv.slice(2);
// Node would run one file at a time on two cores, and most tests compute in one thread.
if (args[0] === '--test') args.splice(1, 0, `--test-concurrency=${Math.max(2, cpus().length - 1)}`);
run(node, args, { env: Object.assign(cache, process.env) });

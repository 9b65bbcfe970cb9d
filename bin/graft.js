#!/usr/bin/env node
// Runs on any Node: starts itself again on one that is new enough (the devDependency `node` of a checkout), or explains what is missing.
// This is why package.json states no `engines`; the published package does (tools/build.ts).
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import module from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const checkout = join(root, 'src', 'cli', 'main.ts');
const main = existsSync(checkout) ? checkout : join(root, 'lib', 'cli', 'main.js');

if (Number(process.versions.node.split('.')[0]) >= 24) {
  module.enableCompileCache(join(root, 'node_modules', '.cache', 'node'));
  await (await import(main)).main();
} else {
  const newer = join(root, 'node_modules', 'node', 'bin', 'node');
  if (!existsSync(newer)) {
    console.error(
      `graft: Graft needs Node 24 or later, and this is Node ${process.versions.node}. In a checkout, run \`npm ci\`, which installs Node 24 beside it; otherwise install a newer Node.`,
    );
    process.exit(1);
  }
  const child = spawn(newer, [fileURLToPath(import.meta.url), ...process.argv.slice(2)], { stdio: 'inherit' });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal));
  child.on('exit', (code, signal) => {
    if (signal) {
      process.removeAllListeners(signal);
      process.kill(process.pid, signal);
    } else process.exit(code);
  });
}

#!/usr/bin/env node
// Runs on any Node: hands over to one that is new enough (the devDependency `node` of a checkout), or says what is missing.
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
      `graft: this is Node ${process.versions.node}, and Graft needs 24 or later. In a checkout, run \`npm ci\`, which brings one.`,
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

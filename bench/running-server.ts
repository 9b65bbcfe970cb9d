/** `graft serve` in a process of its own, for benchmarks of it. */
import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../src/base/index.ts';

export interface RunningServer extends AsyncDisposable {
  readonly url: string;
  /** Returns bytes that the process has in memory. */
  rss(): number;
  /** Returns how many files and sockets it has open. */
  openFiles(): number;
  /** Returns a figure of /metrics. */
  metric(name: string): Promise<number>;
  /** Sends a body and returns the status and the answer's JSON. */
  post(path: string, body: object): Promise<{ readonly status: number; readonly text: string }>;
}

/** Starts it; disposing ends it, and throws where it does not end well. */
export async function startServer(...args: readonly string[]): Promise<RunningServer> {
  const child = spawn(
    process.execPath,
    [join(packageRoot, 'bin', 'graft.js'), 'serve', '--port', '0', '--json', ...args],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  process.on('exit', () => child.kill('SIGKILL'));
  const exited = new Promise<number | null>((resolve) => child.once('close', resolve));
  let out = '';
  child.stdout.setEncoding('utf8');
  for await (const piece of child.stdout.iterator({ destroyOnReturn: false })) {
    out += piece;
    if (out.includes('\n')) break;
  }
  if (!out.includes('\n')) throw new Error(`the server ended with ${await exited} before it listened`);
  const { url } = JSON.parse(out) as { readonly url: string };
  return {
    url,
    rss: () => 1024 * +/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))![1]!,
    openFiles: () => readdirSync(`/proc/${child.pid}/fd`).length,
    async metric(name) {
      const text = await (await fetch(`${url}/metrics`)).text();
      return +new RegExp(`^${name} (\\S+)`, 'm').exec(text)![1]!;
    },
    async post(path, body) {
      const headers = { 'content-type': 'application/json' };
      const answer = await fetch(url + path, { method: 'POST', headers, body: JSON.stringify(body) });
      return { status: answer.status, text: await answer.text() };
    },
    async [Symbol.asyncDispose]() {
      child.kill('SIGTERM');
      const code = await exited;
      if (code !== 0) throw new Error(`the server ended with ${code}`);
    },
  };
}

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command, CommanderError } from 'commander';
import { fileError, GraftError, packageRoot } from '../base/index.ts';
import { bench } from './bench.ts';
import { combine } from './combine.ts';
import { compare } from './compare.ts';
import { convert } from './convert.ts';
import { data } from './data.ts';
import { doctor } from './doctor.ts';
import { evaluate } from './eval.ts';
import { generate } from './generate.ts';
import { inspect } from './inspect.ts';
import { launch } from './launch.ts';
import { logits } from './logits.ts';
import { merge } from './merge.ts';
import { plan } from './plan.ts';
import { predict } from './predict.ts';
import { pull } from './pull.ts';
import { quantize } from './quantize.ts';
import { serve } from './serve.ts';
import { examples, StopSignal } from './shared.ts';
import { train } from './train.ts';

const { version } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as { version: string };

const firstSteps = examples(
  'graft doctor',
  'graft train recipe.yaml',
  'graft generate --model base.gguf --adapter out/adapter --chat --prompt "Hello"',
);

const environment = `Every command takes --json. Exit codes: 0 done, 1 failed, 2 wrong use, 130 stopped with Ctrl-C,
143 by SIGTERM, 129 by SIGHUP.
Environment: GRAFT_CACHE (downloads and builds), GRAFT_LIBTORCH (a LibTorch of your own), HF_TOKEN and HF_ENDPOINT
(hub), GRAFT_DEBUG=1 (stack traces), GRAFT_MKL=generic (MKL's kernels for any processor),
GRAFT_COMPOSITE=1 (on a GPU, LibTorch's operators in place of our kernels).
`;

/** The whole command line; a command is a file and a place in this list. */
export function program(): Command {
  const graft = new Command('graft')
    .description('Fine-tune open language models on your own machine, keep many small adapters on one base.')
    .version(version)
    .exitOverride()
    .addHelpText('after', `${firstSteps}\n${environment}`)
    .showHelpAfterError('(graft --help, or graft <command> --help)');
  for (const command of [
    doctor,
    data,
    train,
    launch,
    plan,
    compare,
    evaluate,
    predict,
    generate,
    serve,
    bench,
    logits,
    merge,
    quantize,
    combine,
    convert,
    inspect,
    pull,
  ]) {
    graft.addCommand(command().exitOverride());
  }
  return graft;
}

/** Runs the command that the arguments name; bin/graft.js calls it. */
export async function main(): Promise<void> {
  // `graft … | head`, or a terminal that was closed: who was listening has gone, and there is nobody to tell.
  let pipeClosed = false;
  let ended = false;
  const onClosed = (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE' && error.code !== 'EIO') throw error;
    if (pipeClosed || ended) return; // the exit code is all that is left to say
    // Training ends as it does when it is stopped, with a checkpoint; everything else has nothing to save.
    if (process.listenerCount('SIGTERM') === 0) process.exit(1);
    pipeClosed = true;
    process.emit('SIGTERM', 'SIGPIPE'); // Node gives SIGPIPE itself no handler that could be removed again
  };
  process.stdout.on('error', onClosed);
  process.stderr.on('error', onClosed);
  try {
    await program().parseAsync();
  } catch (error) {
    ended = true;
    process.exitCode = report(error);
  }
}

/** One clear sentence on stderr (with --json: a document on stdout too). Returns the exit code. */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
  const known = GraftError.of(fileError(error, (error as NodeJS.ErrnoException).path ?? '', 'used'));
  if (process.argv.includes('--json')) console.log(JSON.stringify({ error: known.toJSON() }));
  console.error(`graft: ${known.message}`);
  if (process.env.GRAFT_DEBUG) console.error((known.data.stack as string) ?? known.stack);
  return known.kind === 'interrupted' && known.cause instanceof StopSignal ? known.cause.exitCode : known.exitCode;
}

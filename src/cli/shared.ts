import { Command, InvalidArgumentError, Option } from 'commander';
import type { LogEvent } from '../session/index.ts';

/** A command that works on a loaded model, with the options that all of these have. */
export const onModel = (name: string, description: string, quantize: 'none' | 'keep') =>
  new Command(name)
    .description(description)
    .requiredOption('--model <path>', 'a Hugging Face directory, a .gguf file, or a hub id')
    .option('--adapter <dir>', 'directory of an adapter to put on the model')
    .addOption(
      new Option(
        '--quantize <how>',
        'how weights are held: unpacked (none), as the file has them (keep), packed at load',
      )
        .choices(['none', 'keep', 'int8', 'nf4'])
        .default(quantize),
    )
    .option('--task-number <n>', 'of a prompt for several tasks: which one, where rows do not say', countOrNone)
    .option('--threads <n>', 'processor threads; default: all cores', count)
    .option('--json', 'print the result as JSON');

const wholeNumber =
  (least: number) =>
  (text: string): number => {
    const value = Number(text);
    if (text.trim() !== '' && Number.isInteger(value) && value >= least) return value;
    throw new InvalidArgumentError(
      least > 0 ? 'It must be a whole number above 0.' : 'It must be 0 or a whole number.',
    );
  };

/** A whole number above 0, for an option; the other may be 0. */
export const count = wholeNumber(1);
export const countOrNone = wholeNumber(0);

/** Examples under a command's help. */
export const examples = (...lines: string[]) => `\nExamples:\n${lines.map((line) => `  $ ${line}`).join('\n')}\n`;

/** Prints what takes time on stderr, so that stdout stays for the result. */
export function logLine(event: LogEvent | { readonly type: string }): void {
  if (event.type === 'log') console.error((event as LogEvent).line);
}

export const mebibytes = (bytes: number) => `${Math.round(bytes / 2 ** 20)} MB`;

export function duration(seconds: number): string {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60
    ? `${minutes} min ${Math.round(seconds % 60)} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

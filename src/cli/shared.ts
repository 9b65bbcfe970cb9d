import type { LogEvent } from '../session/index.ts';

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

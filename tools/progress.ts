/** A progress line for programs that people wait for: it moves all the time, and says what comes next and how long it takes. */

const seconds = (ms: number) => `${Math.round(ms / 1000)} s`;

/**
 * Stages of a program, one after the other. On a terminal the line is rewritten four times a second; elsewhere a new line is printed
 * every two seconds. The thread must stay free: work belongs into other threads and processes.
 */
export class Progress {
  readonly #stages: number;
  readonly #timer: NodeJS.Timeout;
  #stage = 0;
  #title = '';
  #next = '';
  #started = 0;
  #expectedMs = 0;
  #fraction = 0;
  #fractionKnownAt = 0;

  /** @param stages how many there will be */
  constructor(stages: number) {
    this.#stages = stages;
    this.#timer = setInterval(() => this.#draw(), process.stdout.isTTY ? 250 : 2000);
  }

  /**
   * Begins the next stage.
   * @param expected seconds that it takes
   * @param next what comes after it
   */
  begin(title: string, expected: number, next: string): void {
    this.#stage++;
    this.#started = performance.now();
    this.#next = next;
    this.#expectedMs = 1000 * expected;
    this.#fraction = 0;
    this.describe(title);
  }

  /** Says something else about the stage, such as the part of it that is running. */
  describe(title: string): void {
    this.#title = title;
    this.#draw();
  }

  /** @param fraction of the stage that is done; the time that is left is extrapolated from it */
  advance(fraction: number, title = this.#title): void {
    this.#fraction = fraction;
    this.#fractionKnownAt = performance.now();
    this.describe(title);
  }

  /** Ends the stage with a line that stays. */
  end(result: string): void {
    const elapsed = performance.now() - this.#started;
    this.print(`[${this.#stage}/${this.#stages}] ${result} (${seconds(elapsed)})`);
    this.#title = '';
  }

  /** Prints a line that stays. */
  print(line: string): void {
    process.stdout.write(process.stdout.isTTY ? `\r\x1b[K${line}\n` : `${line}\n`);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }

  #draw(): void {
    if (this.#title === '') return;
    const elapsed = performance.now() - this.#started;
    const line = `[${this.#stage}/${this.#stages}] ${this.#title}: ${seconds(elapsed)}${this.#left(elapsed)}. Next: ${this.#next}`;
    if (!process.stdout.isTTY) process.stdout.write(`${line}\n`);
    else process.stdout.write(`\r\x1b[K${line.slice(0, process.stdout.columns - 1)}`);
  }

  #left(elapsed: number): string {
    if (this.#fraction >= 1) return '';
    const total = this.#fraction > 0 ? (this.#fractionKnownAt - this.#started) / this.#fraction : this.#expectedMs;
    return total > elapsed ? `, about ${seconds(total - elapsed)} left` : ', longer than expected';
  }
}

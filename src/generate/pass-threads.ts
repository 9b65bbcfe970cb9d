/**
 * How many threads compute small passes. The work of one is cut into hundreds of pieces that every thread has to end before the next begins: where
 * waking a thread costs much (virtual machines) or another program has a core, fewer threads are faster, by up to two times. So it is measured.
 */

/** Passes of each of two numbers of threads in a trial. */
const passesOfEach = 4;

/** Passes without a trial: after a change, and after many trials that changed nothing. */
const [shortRest, longRest] = [32, 512];

/** What another number has to save. */
const gain = 0.05;

/** Tokens of a pass up to which it is small: rows that are so few have the same bits with any number of threads. */
const smallPass = 32;

/** Of passes of about the same size, the number of threads that has been fastest. */
export class ThreadChoice {
  readonly #most: number;
  #best: number;
  /** What is tried against the best; undefined between trials. */
  #rival: number | undefined;
  #times: { readonly best: number[]; readonly rival: number[] } = { best: [], rival: [] };
  #rest = 1;
  #nextRest = shortRest;
  #triesMore = false;

  /** @param most threads that may be used; passes begin with them */
  constructor(most: number) {
    this.#most = most;
    this.#best = most;
  }

  /** The threads of the next pass. */
  get threads(): number {
    return this.#rival !== undefined && this.#isRivalsTurn ? this.#rival : this.#best;
  }

  /** B R R B B R R B: what grows from pass to pass, such as the length of rows, counts for both. */
  get #isRivalsTurn(): boolean {
    const passes = this.#times.best.length + this.#times.rival.length;
    return ((passes + 1) & 2) !== 0;
  }

  /** Takes how long that pass took. */
  took(ms: number): void {
    if (this.#rival === undefined) {
      if (--this.#rest > 0) return;
      this.#rival = this.#neighbour();
      this.#times = { best: [], rival: [] };
      if (this.#rival === undefined) this.#rest = longRest;
      return;
    }
    const { best, rival } = this.#times;
    (this.#isRivalsTurn ? rival : best).push(ms);
    if (best.length < passesOfEach || rival.length < passesOfEach) return;
    const isFaster = median(rival) < (1 - gain) * median(best);
    if (isFaster) this.#best = this.#rival;
    // In the direction that has just helped there may be more.
    else this.#triesMore = !this.#triesMore;
    this.#nextRest = isFaster ? shortRest : Math.min(2 * this.#nextRest, longRest);
    this.#rest = isFaster ? 1 : this.#nextRest;
    this.#rival = undefined;
  }

  /** Half or twice as many, in turn. */
  #neighbour(): number | undefined {
    const fewer = this.#best > 1 ? Math.ceil(this.#best / 2) : undefined;
    const more = this.#best < this.#most ? Math.min(2 * this.#best, this.#most) : undefined;
    return this.#triesMore ? (more ?? fewer) : (fewer ?? more);
  }
}

/** The choices of a model, which last as long as it does. */
export class PassThreads {
  readonly #choices = new Map<string, ThreadChoice>();

  /** Returns what decides for a pass of so many tokens; undefined for a large one, which all threads compute. */
  of(tokens: number, most: number): ThreadChoice | undefined {
    if (tokens > smallPass || most === 1) return undefined;
    const key = `${most} ${Math.ceil(Math.log2(tokens))}`;
    const choice = this.#choices.get(key) ?? new ThreadChoice(most);
    this.#choices.set(key, choice);
    return choice;
  }
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

/**
 * A job that runs: `await` it for its result, or `for await` over what it tells meanwhile, or both (iterate first). What
 * is told before the iteration begins is kept for it, unless the job was awaited before.
 */
export class Running<Item, Result> implements Promise<Result>, AsyncIterable<Item> {
  readonly #result: Promise<Result>;
  readonly #leave: () => void;
  /** Undefined: nobody will iterate. */
  #items: Item[] | undefined = [];
  #iterated = false;
  #ended = false;
  #wake: (() => void) | undefined;

  /**
   * @internal
   * @param start begins the job; `tell` hands an item to whoever iterates
   * @param leave is called when an iteration is left early
   */
  constructor(start: (tell: (item: Item) => void) => Promise<Result>, leave: () => void = () => {}) {
    this.#leave = leave;
    const tell = (item: Item) => {
      this.#items?.push(item);
      this.#wake?.();
    };
    this.#result = start(tell).finally(() => {
      this.#ended = true;
      this.#wake?.();
    });
  }

  // biome-ignore lint/suspicious/noThenProperty: it is awaited, as a promise is
  readonly then: Promise<Result>['then'] = (onFulfilled, onRejected) => {
    if (!this.#iterated) this.#items = undefined;
    return this.#result.then(onFulfilled, onRejected);
  };

  readonly catch: Promise<Result>['catch'] = (onRejected) => this.then(undefined, onRejected);

  readonly finally: Promise<Result>['finally'] = (onFinally) => this.then().finally(onFinally);

  readonly [Symbol.toStringTag] = 'Running';

  /** The items as they come; ends with the job, and throws what the job fails with. */
  async *#iterate(): AsyncGenerator<Item, void, undefined> {
    const items = this.#items ?? [];
    let finished = false;
    try {
      for (;;) {
        while (items.length > 0) yield items.shift()!;
        if (this.#ended) break;
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
      finished = true;
      await this.#result;
    } finally {
      this.#items = undefined;
      if (!finished) this.#leave();
    }
  }

  [Symbol.asyncIterator](): AsyncGenerator<Item, void, undefined> {
    if (this.#iterated || this.#items === undefined) {
      throw new TypeError('A running job is iterated once, and before it is awaited');
    }
    this.#iterated = true;
    this.#result.catch(() => {}); // the iteration throws it
    return this.#iterate();
  }
}

import { equals } from './operators.ts';
import { bool, type Call, fail, func, type Instance, int, tuple, undefinedValue, type Value } from './values.ts';

/** The items of a loop as it runs, and what `loop` tells of them: the next item is taken early where that is asked for. */
export class Loop {
  readonly #items: Iterator<Value>;
  readonly #depth: number;
  readonly #recurse: ((items: Value) => Value) | undefined;
  #length: number | undefined;
  #index = -1;
  #ahead: Value[] = [];
  #current: Value | undefined;
  #before: Value | undefined;
  #changed: Value | undefined;

  /**
   * @param length of the items, where it is known without running through them
   * @param depth of loops that are called by themselves, from 0
   */
  constructor(items: Iterable<Value>, length: number | undefined, depth: number, recurse?: (items: Value) => Value) {
    this.#items = items[Symbol.iterator]();
    this.#length = length;
    this.#depth = depth;
    this.#recurse = recurse;
  }

  #take(): Value | undefined {
    const { done, value } = this.#items.next();
    return done ? undefined : value;
  }

  #peek(): Value | undefined {
    const [first] = this.#ahead;
    if (first) return first;
    const next = this.#take();
    if (next) this.#ahead.push(next);
    return next;
  }

  /** Goes to the next item; undefined at the end. */
  next(): Value | undefined {
    const item = this.#ahead.shift() ?? this.#take();
    if (!item) return undefined;
    this.#index++;
    this.#before = this.#current;
    this.#current = item;
    return item;
  }

  #count(): number {
    if (this.#length === undefined) {
      for (let item = this.#take(); item; item = this.#take()) this.#ahead.push(item);
      this.#length = this.#index + 1 + this.#ahead.length;
    }
    return this.#length;
  }

  #attribute(name: string): Value | undefined {
    switch (name) {
      case 'index':
        return int(this.#index + 1);
      case 'index0':
        return int(this.#index);
      case 'length':
        return int(this.#count());
      case 'revindex':
        return int(this.#count() - this.#index);
      case 'revindex0':
        return int(this.#count() - this.#index - 1);
      case 'first':
        return bool(this.#index === 0);
      case 'last':
        return bool(!this.#peek());
      case 'depth':
        return int(this.#depth + 1);
      case 'depth0':
        return int(this.#depth);
      case 'previtem':
        return this.#before ?? undefinedValue('there is no previous item');
      case 'nextitem':
        return this.#peek() ?? undefinedValue('there is no next item');
      case 'cycle':
        return func(name, (args) => args[this.#index % args.length] ?? fail('no items for cycling given'));
      case 'changed':
        return func(name, (args) => {
          const values = tuple(args);
          const isChanged = !this.#changed || !equals(this.#changed, values);
          if (isChanged) this.#changed = values;
          return bool(isChanged);
        });
      default:
        return undefined;
    }
  }

  /** `loop`. */
  get value(): Instance {
    const call: Call = ([items]) => {
      if (!this.#recurse) return fail("The loop must have the 'recursive' marker to be called recursively.");
      return this.#recurse(items ?? fail('loop() needs what to loop over'));
    };
    return {
      type: 'object',
      className: 'LoopContext',
      repr: () => `<LoopContext ${this.#index + 1}/${this.#count()}>`,
      get: (name) => this.#attribute(name),
      call,
      length: () => this.#count(),
    };
  }
}

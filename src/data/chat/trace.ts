import {
  type CompiledTemplate,
  type Expression,
  Interpreter,
  type Kwargs,
  type Part,
  partsOf,
  pythonStr,
  type Scope,
  type Statement,
  str,
  type Value,
} from '../jinja/index.ts';

/** Neither a message nor a part of one. */
export const NONE = -1;
/** Several messages at once. */
export const SEVERAL = -2;

/** A piece of a rendering, and where it comes from. */
export interface Piece {
  readonly text: string;
  /** Index of the message whose turn in the loop printed the piece; NONE outside of such a loop. */
  readonly turn: number;
  /** The same for the innermost loop or macro over messages, which differs where a turn prints another message. */
  readonly innerTurn: number;
  /** Index of the message that the text is a part of (its role and name apart): NONE for text of the template, or SEVERAL. */
  readonly source: number;
}

const isPlaced = ({ turn }: Piece) => turn !== NONE;
const unite = (a: number, b: number) => (a === NONE || a === b ? b : b === NONE ? a : SEVERAL);
/** What a message says of itself rather than with its text: its header prints these. */
const headerFields = new Set(['role', 'name']);
/** Nodes whose values do not depend on other nodes; text that the rest makes out of a message is the message's. */
const leaves = new Set(['constant', 'name']);

/**
 * An interpreter that knows of each piece of text which message it is a part of, and in which message's turn it was printed.
 * Every value that an expression makes belongs to the messages whose parts went into it; texts that are joined stay apart.
 */
class TracingInterpreter extends Interpreter {
  /** The messages as values of the interpreter. */
  readonly #indices = new WeakMap<object, number>();
  readonly #sources = new WeakMap<object, number>();
  readonly #pieces = new WeakMap<object, readonly Piece[]>();
  /** The message in whose turn a scope is, and the items of loops over numbers. */
  readonly #turns = new WeakMap<Scope, number>();
  readonly #numbers = new WeakMap<Scope, Value>();
  #turn = NONE;
  #innerTurn = NONE;
  /** The union of the sources of what was evaluated in the expression at hand. */
  #seen = NONE;
  /** A joined text that was evaluated in it. */
  #joined: Value | undefined;

  constructor(scope: Scope, marks: readonly [begin: string, end: string]) {
    super(scope, marks);
    for (const [i, message] of partsOf(scope.lookup('messages')!).entries()) {
      this.#indices.set(message, i);
      this.#sources.set(message, i);
      if (message.type !== 'dict') continue;
      for (const [field, value] of message.map.entries()) {
        this.#mark(value, headerFields.has(pythonStr(field)) ? NONE : i);
      }
    }
  }

  #mark(value: Value, source: number): void {
    this.#sources.set(value, source);
    for (const part of partsOf(value)) this.#mark(part, source);
  }

  /** The messages that a value and all that it contains belong to. */
  #sourceOf(value: Value): number {
    return partsOf(value).reduce(
      (source, part) => unite(source, this.#sourceOf(part)),
      this.#sources.get(value) ?? NONE,
    );
  }

  /** A text that a filter makes of a list or an object belongs to all that is in it. */
  protected override applyFilter(name: string, operand: Value, args: readonly Value[], kwargs: Kwargs): Value {
    const result = super.applyFilter(name, operand, args, kwargs);
    if (result.type === 'str' && operand.type !== 'str' && !this.#sources.has(result)) {
      this.#sources.set(result, this.#sourceOf(operand));
    }
    return result;
  }

  /** The pieces of a value as it would be printed. */
  piecesOf(value: Value): readonly Piece[] {
    return (
      this.#pieces.get(value) ?? [
        { text: pythonStr(value), turn: NONE, innerTurn: NONE, source: this.#sourceOf(value) },
      ]
    );
  }

  protected override evaluate(node: Expression, scope: Scope): Value {
    const [seen, joined] = [this.#seen, this.#joined];
    this.#seen = NONE;
    this.#joined = undefined;
    const value = super.evaluate(node, scope);
    if (!this.#sources.has(value)) {
      const isExpression = !leaves.has(node.type);
      if (isExpression && this.#joined) this.#cut(value, this.#joined);
      if (!this.#sources.has(value)) this.#sources.set(value, isExpression ? this.#seen : NONE);
    }
    this.#seen = unite(seen, this.#sources.get(value)!);
    this.#joined = this.#pieces.has(value) ? value : (joined ?? this.#joined);
    return value;
  }

  /** Gives the texts that an operation took out of a joined text, such as the parts of `split`, their own pieces. */
  #cut(result: Value, joined: Value): void {
    const whole = pythonStr(joined);
    const parts = (result.type === 'str' ? [result] : partsOf(result)).filter(
      (part) => part.type === 'str' && !this.#sources.has(part),
    );
    let from = 0;
    for (const part of parts) {
      const text = pythonStr(part);
      const isEnd = parts.length === 1 && !whole.startsWith(text) && whole.endsWith(text);
      const at = isEnd ? whole.length - text.length : whole.indexOf(text, from);
      if (at < 0) return;
      from = at + text.length;
      const pieces = slicePieces(this.#pieces.get(joined)!, at, from);
      this.#pieces.set(part, pieces);
      this.#sources.set(
        part,
        pieces.reduce((source, piece) => unite(source, piece.source), NONE),
      );
    }
  }

  protected override concatenate(parts: readonly Value[]): Value {
    const pieces: Piece[] = [];
    let source = NONE;
    for (const part of parts)
      for (const piece of this.piecesOf(part)) {
        if (piece.text === '') continue;
        source = unite(source, piece.source);
        pieces.push(isPlaced(piece) ? piece : { ...piece, turn: this.#turn, innerTurn: this.#innerTurn });
      }
    const joined = str(pieces.map(({ text }) => text).join(''));
    this.#sources.set(joined, source);
    this.#pieces.set(joined, pieces);
    return joined;
  }

  /** Values that are shown as they are keep their pieces. */
  protected override joinParts(parts: readonly Part[]): Value {
    return this.concatenate(
      parts.map(({ text, of }) => {
        if (of && pythonStr(of) === text) return of;
        const shown = str(text);
        if (of) this.#sources.set(shown, this.#sourceOf(of));
        return shown;
      }),
    );
  }

  protected override evaluateBlock(statements: readonly Statement[], scope: Scope): Value {
    const [turn, innerTurn] = [this.#turn, this.#innerTurn];
    this.#enter(this.#turns.get(scope));
    try {
      return super.evaluateBlock(statements, scope);
    } finally {
      this.#turn = turn;
      this.#innerTurn = innerTurn;
    }
  }

  #enter(index: number | undefined): void {
    if (index === undefined) return;
    if (this.#turn === NONE) this.#turn = index;
    this.#innerTurn = index;
  }

  /** Items that a text or a dictionary was taken apart into are parts of the same message. */
  protected override *itemsOf(iterable: Value): Iterable<Value> {
    const source = this.#sources.get(iterable) ?? NONE;
    const inherit = (item: Value) => {
      if (!this.#sources.has(item)) this.#sources.set(item, source);
      if (item.type === 'list' || item.type === 'tuple') item.items.forEach(inherit);
    };
    for (const item of super.itemsOf(iterable)) {
      if (source !== NONE) inherit(item);
      yield item;
    }
  }

  protected override evaluateIteration(body: readonly Statement[], scope: Scope, item: Value): Value {
    const index = this.#indices.get(item);
    if (index !== undefined) this.#turns.set(scope, index);
    else if (item.type === 'int') this.#numbers.set(scope, item);
    return super.evaluateIteration(body, scope, item);
  }

  /** In a loop over numbers, the message of this number is the one whose turn it is. */
  protected override evaluateItem(node: Extract<Expression, { type: 'item' }>, scope: Scope): Value {
    const value = super.evaluateItem(node, scope);
    const index = this.#indices.get(value);
    if (index === undefined || node.key.type !== 'name') return value;
    let loop: Scope | undefined = scope;
    while (loop && !this.#numbers.has(loop)) loop = loop.parent;
    if (loop && !this.#turns.has(loop) && scope.lookup(node.key.name) === this.#numbers.get(loop)) {
      this.#turns.set(loop, index);
      this.#enter(index);
    }
    return value;
  }

  protected override enterMacro(scope: Scope, args: readonly Value[]): void {
    const indices = args.map((arg) => this.#indices.get(arg)).filter((index) => index !== undefined);
    if (indices.length === 1) this.#turns.set(scope, indices[0]!);
  }
}

/** The pieces of a part [start, stop) of a text. */
function slicePieces(pieces: readonly Piece[], start: number, stop: number): Piece[] {
  const inside: Piece[] = [];
  let at = 0;
  for (const piece of pieces) {
    const text = piece.text.slice(Math.max(0, start - at), Math.max(0, stop - at));
    if (text !== '') inside.push({ ...piece, text });
    at += piece.text.length;
  }
  return inside;
}

/**
 * The pieces of a template's rendering, in order.
 * @param variables with `messages`, a list of objects
 */
export function trace(template: CompiledTemplate, variables: Record<string, unknown>): readonly Piece[] {
  let interpreter: TracingInterpreter | undefined;
  const value = template.run(variables, (...made) => {
    interpreter = new TracingInterpreter(...made);
    return interpreter;
  });
  return interpreter!.piecesOf(value);
}

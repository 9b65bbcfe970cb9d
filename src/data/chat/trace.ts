import type { Environment } from '@huggingface/jinja';
import { type Node, PythonInterpreter, pythonStr, toValue, type Value } from './interpreter.ts';
import type { CompiledTemplate } from './jinja.ts';

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
/** Nodes whose values depend on what they contain, so that text that they make out of a message is the message's. */
const expressionTypes = new Set(
  'CallExpression MemberExpression UnaryExpression BinaryExpression FilterExpression TestExpression SelectExpression Ternary ArrayLiteral TupleLiteral ObjectLiteral'.split(
    ' ',
  ),
);

/**
 * An interpreter that knows of each piece of text which message it is a part of, and in which message's turn it was printed.
 * Every value that an expression makes belongs to the messages whose parts went into it; texts that are joined stay apart.
 */
class TracingInterpreter extends PythonInterpreter {
  /** The messages as values of the interpreter. */
  readonly #indices = new WeakMap<object, number>();
  readonly #sources = new WeakMap<object, number>();
  readonly #pieces = new WeakMap<object, readonly Piece[]>();
  /** The message in whose turn a scope is, and the items of loops over numbers. */
  readonly #turns = new WeakMap<Environment, number>();
  readonly #numbers = new WeakMap<Environment, Value>();
  #turn = NONE;
  #innerTurn = NONE;
  /** The union of the sources of what was evaluated in the expression at hand. */
  #seen = NONE;
  /** A joined text that was evaluated in it. */
  #joined: Value | undefined;

  constructor(scope: Environment) {
    super(scope);
    const messages = scope.lookupVariable('messages').value as Value[];
    for (const [i, message] of messages.entries()) {
      this.#indices.set(message, i);
      this.#sources.set(message, i);
      for (const [field, value] of message.value as Map<string, Value>) {
        this.#mark(value, headerFields.has(field) ? NONE : i);
      }
    }
  }

  #mark(value: Value, source: number): void {
    this.#sources.set(value, source);
    if (Array.isArray(value.value)) for (const item of value.value as Value[]) this.#mark(item, source);
    else if (value.value instanceof Map) for (const item of value.value.values()) this.#mark(item, source);
  }

  /** The messages that a value and all that it contains belong to. */
  #sourceOf(value: Value): number {
    const own = this.#sources.get(value) ?? NONE;
    const parts =
      value.value instanceof Map ? [...value.value.values()] : Array.isArray(value.value) ? value.value : [];
    return (parts as Value[]).reduce((source, part) => unite(source, this.#sourceOf(part)), own);
  }

  /** A text that a filter makes of a list or an object belongs to all that is in it. */
  override applyFilter(operand: Value, filter: Node, scope: Environment): Value {
    const result = super.applyFilter(operand, filter, scope);
    if (result?.type === 'StringValue' && operand.type !== 'StringValue' && !this.#sources.has(result)) {
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

  override evaluate(node: Node, scope: Environment): Value {
    const [seen, joined] = [this.#seen, this.#joined];
    this.#seen = NONE;
    this.#joined = undefined;
    const value = super.evaluate(node, scope);
    if (!this.#sources.has(value)) {
      const isExpression = expressionTypes.has(node?.type);
      if (isExpression && this.#joined) this.#cut(value, this.#joined);
      if (!this.#sources.has(value)) this.#sources.set(value, isExpression ? this.#seen : NONE);
    }
    this.#seen = unite(seen, this.#sources.get(value)!);
    this.#joined = this.#pieces.has(value) ? value : (joined ?? this.#joined);
    return value;
  }

  /** Gives the texts that an operation took out of a joined text, such as the parts of `split`, their own pieces. */
  #cut(result: Value, joined: Value): void {
    const whole = joined.value as string;
    const parts = (Array.isArray(result.value) ? (result.value as Value[]) : [result]).filter(
      (part) => part.type === 'StringValue' && !this.#sources.has(part),
    );
    let from = 0;
    for (const part of parts) {
      const text = part.value as string;
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
    const joined = toValue(pieces.map(({ text }) => text).join(''));
    this.#sources.set(joined, source);
    this.#pieces.set(joined, pieces);
    return joined;
  }

  override evaluateBlock(nodes: readonly Node[], scope: Environment): Value {
    const [turn, innerTurn] = [this.#turn, this.#innerTurn];
    this.#enter(this.#turns.get(scope));
    try {
      return super.evaluateBlock(nodes, scope);
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
  protected override itemsOf(iterable: Value): Value[] {
    const items = super.itemsOf(iterable);
    const source = this.#sources.get(iterable) ?? NONE;
    const inherit = (item: Value) => {
      if (!this.#sources.has(item)) this.#sources.set(item, source);
      if (Array.isArray(item.value)) for (const part of item.value as Value[]) inherit(part);
    };
    if (source !== NONE) items.forEach(inherit);
    return items;
  }

  protected override evaluateIteration(body: readonly Node[], scope: Environment, item: Value): Value {
    const index = this.#indices.get(item);
    if (index !== undefined) this.#turns.set(scope, index);
    else if (item.type === 'IntegerValue') this.#numbers.set(scope, item);
    return super.evaluateIteration(body, scope, item);
  }

  /** In a loop over numbers, the message of this number is the one whose turn it is. */
  override evaluateMemberExpression(node: Node, scope: Environment): Value {
    const value = super.evaluateMemberExpression(node, scope);
    const index = this.#indices.get(value);
    if (index !== undefined && node.computed && !this.#turns.has(scope)) {
      const { type, value: name } = node.property as Node;
      const number = this.#numbers.get(scope);
      if (number && type === 'Identifier' && scope.lookupVariable(name as string) === number) {
        this.#turns.set(scope, index);
        this.#enter(index);
      }
    }
    return value;
  }

  override bindMacroArguments(name: string, parameters: unknown, special: unknown, args: Value[], scope: Environment) {
    super.bindMacroArguments(name, parameters, special, args, scope);
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
  const value = template.run(variables, (scope) => {
    interpreter = new TracingInterpreter(scope);
    return interpreter;
  });
  return interpreter!.piecesOf(value);
}

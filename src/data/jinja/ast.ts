import type { Value } from './values.ts';

/** An expression. */
export type Expression =
  | { readonly type: 'constant'; readonly value: Value }
  | { readonly type: 'name'; readonly name: string }
  | { readonly type: 'list' | 'tuple'; readonly items: readonly Expression[] }
  | { readonly type: 'dict'; readonly entries: readonly (readonly [Expression, Expression])[] }
  | { readonly type: 'attribute'; readonly object: Expression; readonly name: string }
  | { readonly type: 'item'; readonly object: Expression; readonly key: Expression | Slice }
  | Call
  | Filter
  | Test
  | { readonly type: 'not' | 'negative' | 'positive'; readonly operand: Expression }
  | { readonly type: 'and' | 'or'; readonly left: Expression; readonly right: Expression }
  | { readonly type: 'binary'; readonly operator: string; readonly left: Expression; readonly right: Expression }
  | { readonly type: 'concat'; readonly parts: readonly Expression[] }
  | { readonly type: 'compare'; readonly first: Expression; readonly rest: readonly Comparison[] }
  | {
      readonly type: 'condition';
      readonly test: Expression;
      readonly then: Expression;
      readonly otherwise: Expression | undefined;
    };

/** What stands in the brackets of `text[start:stop:step]`. */
export interface Slice {
  readonly type: 'slice';
  readonly parts: readonly [start: Expression | undefined, stop: Expression | undefined, step: Expression | undefined];
}
export interface Comparison {
  readonly operator: string;
  readonly operand: Expression;
}
export interface Arguments {
  readonly args: readonly Expression[];
  readonly kwargs: readonly (readonly [name: string, value: Expression])[];
  /** `*list` and `**dictionary`. */
  readonly moreArgs: Expression | undefined;
  readonly moreKwargs: Expression | undefined;
}
export interface Call {
  readonly type: 'call';
  readonly callee: Expression;
  readonly arguments: Arguments;
}
/** A filter; in a block it has no operand, for its operand is the block's text. */
export interface Filter {
  readonly type: 'filter';
  readonly operand: Expression | undefined;
  readonly name: string;
  readonly arguments: Arguments;
  readonly line: number;
}
export interface Test {
  readonly type: 'test';
  readonly operand: Expression;
  readonly name: string;
  readonly arguments: Arguments;
  readonly line: number;
}

/** What is assigned to: a name, an attribute of a namespace, or several of these. */
export type Target =
  | { readonly type: 'variable'; readonly name: string }
  | { readonly type: 'namespace attribute'; readonly namespace: string; readonly name: string }
  | { readonly type: 'targets'; readonly items: readonly Target[] };

export interface Signature {
  readonly names: readonly string[];
  /** Those of the last parameters. */
  readonly defaults: readonly Expression[];
}

export type Statement =
  | { readonly type: 'text'; readonly value: string }
  | { readonly type: 'print'; readonly expression: Expression }
  | For
  | { readonly type: 'if'; readonly branches: readonly Branch[]; readonly otherwise: readonly Statement[] }
  | { readonly type: 'set'; readonly target: Target; readonly value: Expression }
  | {
      readonly type: 'set block';
      readonly target: Target;
      readonly filter: Filter | undefined;
      readonly body: readonly Statement[];
    }
  | {
      readonly type: 'with';
      readonly targets: readonly Target[];
      readonly values: readonly Expression[];
      readonly body: readonly Statement[];
    }
  | Macro
  | {
      readonly type: 'call block';
      readonly call: Call;
      readonly signature: Signature;
      readonly body: readonly Statement[];
    }
  | { readonly type: 'filter block'; readonly filter: Filter; readonly body: readonly Statement[] }
  | { readonly type: 'block'; readonly name: string; readonly scoped: boolean; readonly body: readonly Statement[] }
  | { readonly type: 'generation'; readonly body: readonly Statement[] }
  | { readonly type: 'break' | 'continue' };

export interface Branch {
  readonly test: Expression;
  readonly body: readonly Statement[];
}
export interface For {
  readonly type: 'for';
  readonly target: Target;
  readonly iterable: Expression;
  readonly test: Expression | undefined;
  readonly recursive: boolean;
  readonly body: readonly Statement[];
  readonly otherwise: readonly Statement[];
}
export interface Macro {
  readonly type: 'macro';
  readonly name: string;
  readonly signature: Signature;
  readonly body: readonly Statement[];
}

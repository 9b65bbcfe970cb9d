import { type ModelPart, modelParts } from '../../nn/index.ts';

/**
 * Numbers of a part. `lasting`: whether it trains (1) by the rules without an end; `passing`: by a rule that counts until step `until`,
 * −1 where there is none; `since`: the step since which it stands so; the others: means of the norm of its gradient.
 */
const ofPart = ['lasting', 'passing', 'until', 'since', 'sum', 'count', 'first'] as const;
/** Numbers of the rules with a plateau: whose turn it is, the losses since then, and the mean before these (NaN: none yet). */
const ofLoss = ['turn', 'sum', 'count', 'before'] as const;

type Values<K extends string> = Partial<Readonly<Record<K, number>>>;

/** How many float64 numbers the state of a schedule has. */
export const stateSize = (layers: number): number => modelParts({ layers }).length * ofPart.length + ofLoss.length;

/** All that a schedule has to know of the steps before, in memory that a checkpoint saves. At first every part trains. */
export class ScheduleState {
  readonly #numbers: Float64Array;
  readonly #parts: readonly ModelPart[];

  /** @param numbers [stateSize(layers)] */
  constructor(layers: number, numbers: Float64Array = new Float64Array(stateSize(layers))) {
    this.#numbers = numbers;
    this.#parts = modelParts({ layers });
    for (const part of this.#parts) this.set(part, { lasting: 1, passing: -1 });
    this.setLoss({ before: Number.NaN });
  }

  #read<K extends string>(names: readonly K[], offset: number): Record<K, number> {
    return Object.fromEntries(names.map((name, i) => [name, this.#numbers[offset + i]!])) as Record<K, number>;
  }

  #write<K extends string>(names: readonly K[], offset: number, values: Values<K>): void {
    for (const [i, name] of names.entries()) this.#numbers[offset + i] = values[name] ?? this.#numbers[offset + i]!;
  }

  #offset(part: ModelPart): number {
    return ofLoss.length + this.#parts.indexOf(part) * ofPart.length;
  }

  trains(part: ModelPart): boolean {
    const { lasting, passing } = this.of(part);
    return (passing < 0 ? lasting : passing) === 1;
  }

  of(part: ModelPart): Record<(typeof ofPart)[number], number> {
    return this.#read(ofPart, this.#offset(part));
  }

  set(part: ModelPart, values: Values<(typeof ofPart)[number]>): void {
    this.#write(ofPart, this.#offset(part), values);
  }

  get loss(): Record<(typeof ofLoss)[number], number> {
    return this.#read(ofLoss, 0);
  }

  setLoss(values: Values<(typeof ofLoss)[number]>): void {
    this.#write(ofLoss, 0, values);
  }
}

export interface RawRecord {
  readonly value: Readonly<Record<string, unknown>>;
  /** file:line, or file:row where a file has no lines. */
  readonly place: string;
}

/** A row of a data file, before it is read as an example. */
export interface RawRecord {
  /** Values by column. */
  readonly value: Readonly<Record<string, unknown>>;
  /** The columns as they are in the file, where they were renamed. */
  readonly original?: Readonly<Record<string, unknown>>;
  /** The file and the line, `file:line`, or the row, `file:row n`, where a format has no lines. */
  readonly place: string;
}

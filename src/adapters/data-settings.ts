/** How the rows were read that an adapter was trained on: saved with it, and used for rows that it is given later. */
import { z } from 'zod';
import { parseWith } from '../base/index.ts';
import { formatNames, truncations } from '../data/index.ts';
import { readGraftFile } from './adapter-dir.ts';

const schema = z.object({
  max_length: z.int().positive().optional(),
  truncate: z.enum(truncations).optional(),
  stride: z.int().nonnegative().optional(),
  train_on: z.enum(['completion', 'all']).optional(),
  format: z.enum(['auto', ...formatNames, 'batches']).optional(),
  columns: z.record(z.string(), z.string()).optional(),
  delimiter: z.string().length(1).optional(),
});

/** Settings of rows, as in the section `data` of a recipe. */
export type DataSettings = z.infer<typeof schema>;

/** The settings of an adapter's rows; empty where none were saved. @throws GraftError 'input' for a damaged `graft.json` */
export const dataSettingsOf = (dir: string): DataSettings =>
  parseWith(schema, readGraftFile(dir).data ?? {}, `${dir}/graft.json`, 'input');

/** What of a recipe's section `data` is saved. */
export const savedDataSettings = (data: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> =>
  Object.fromEntries(
    Object.keys(schema.shape).flatMap((name) => (data[name] === undefined ? [] : [[name, data[name]]])),
  );

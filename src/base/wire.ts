/** Names in files, in `--json` and on the wire are snake_case, names in TypeScript camelCase. */

/** Fields that hold maps: their keys are names of the user's, which stay as they are. */
const maps: ReadonlySet<string> = new Set(['tasks', 'probabilities', 'data']);

/** Fields that repeat a value of the user's, which may be an object: it stays as it is. */
const values: ReadonlySet<string> = new Set(['id']);

const toSnake = (name: string): string =>
  name.replace(/PerSecond$/, 'PerS').replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

const toCamel = (name: string): string =>
  name.replace(/_per_s$/, '_per_second').replaceAll(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());

function renamed(value: unknown, rename: (name: string) => string): unknown {
  if (Array.isArray(value)) return value.map((item) => renamed(item, rename));
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return value;
  return Object.fromEntries(
    Object.entries(value).map(([name, field]) => {
      if (values.has(name)) return [name, field];
      const isMap = maps.has(name) && typeof field === 'object' && field !== null && !Array.isArray(field);
      const inside = isMap
        ? Object.fromEntries(Object.entries(field).map(([key, item]) => [key, renamed(item, rename)]))
        : renamed(field, rename);
      return [rename(name), inside];
    }),
  );
}

/** A result or an event as it is written: `heldOut` becomes `held_out`, `tokensPerSecond` `tokens_per_s`. */
export const toWire = (value: object): unknown => renamed(value, toSnake);

/** The reverse of `toWire`. */
export const fromWire = (value: unknown): unknown => renamed(value, toCamel);

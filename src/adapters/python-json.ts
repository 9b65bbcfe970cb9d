/** JSON as Python writes it: keys sorted, and `scaling` with a decimal point, without which AdapterHub refuses it. */
export function pythonJson(value: Record<string, unknown>): string {
  const sorted = (_: string, v: unknown) =>
    typeof v === 'object' && v !== null && !Array.isArray(v)
      ? Object.fromEntries(Object.entries(v).sort(([a], [b]) => (a < b ? -1 : 1)))
      : v;
  return `${JSON.stringify(value, sorted, 2).replace(/("scaling": -?\d+)(,?)$/m, '$1.0$2')}\n`;
}

/** The element types that Graft uses, with the code of LibTorch's `ScalarType` and the size in bytes. */
export const dtypes = {
  uint8: { code: 0, bytes: 1 },
  int8: { code: 1, bytes: 1 },
  int16: { code: 2, bytes: 2 },
  int32: { code: 3, bytes: 4 },
  int64: { code: 4, bytes: 8 },
  float16: { code: 5, bytes: 2 },
  float32: { code: 6, bytes: 4 },
  float64: { code: 7, bytes: 8 },
  bool: { code: 11, bytes: 1 },
  bfloat16: { code: 15, bytes: 2 },
} as const;

/** An element type of tensors. */
export type DType = keyof typeof dtypes;

const names = new Map<number, DType>(Object.entries(dtypes).map(([name, { code }]) => [code, name as DType]));

/** Returns the type of a `ScalarType` code. @throws RangeError for a type that Graft does not use (complex, quantised, float8) */
export function dtypeOf(code: number): DType {
  const name = names.get(code);
  if (name === undefined) throw new RangeError(`Graft does not support LibTorch's scalar type ${code}`);
  return name;
}

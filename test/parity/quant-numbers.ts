// Numbers that tools/golden/quant_numbers.py makes too: formulas of a hash of the number of an element in its matrix.
function uniform(seed: number, i: number): number {
  let h = (i + seed * 0x9e3779b9) % 2 ** 32;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return ((h ^ (h >>> 16)) >>> 8) / 2 ** 24;
}

function bell(seed: number, i: number): number {
  let sum = 0;
  for (let k = 0; k < 6; k++) sum += uniform(seed + 101 * k, i);
  return sum * Math.SQRT2 - 4.242640687119286;
}

const { floor, abs } = Math;
export const kinds = {
  normal: (s: number, i: number) => bell(s, i) * 0.05,
  spread: (s: number, i: number) => bell(s, i) * 2 ** (floor(uniform(s + 7, i) * 14) - 10),
  ties: (s: number, i: number) => (floor(uniform(s, i) * 65) - 32) / 4,
  few: (s: number, i: number) => floor(uniform(s, i) * 3) - 1,
  flat: (s: number, i: number) => bell(s, floor(i / 32)),
  'flat halves': (s: number, i: number) => bell(s, floor(i / 16)) * 1e-3,
  zeros: (s: number, i: number) => 0 * (uniform(s, i) - 0.5),
  positive: (s: number, i: number) => abs(bell(s, i)) + 0.25,
  negative: (s: number, i: number) => -abs(bell(s, i)) - 0.25,
  outlier: (s: number, i: number) => {
    const block = floor(i / 32);
    return bell(s, i) * 0.02 * (block * 32 + floor(uniform(s + 7, block) * 32) === i ? 1000 : 1);
  },
  sparse: (s: number, i: number) => (uniform(s + 7, i) < 0.97 ? 0 : bell(s, i)),
  'blocks of sizes': (s: number, i: number) => bell(s, i) * 2 ** (floor(uniform(s + 7, floor(i / 16)) * 24) - 20),
  close: (s: number, i: number) => 1 + floor(uniform(s, i) * 5) * 2 ** -23,
  large: (s: number, i: number) => bell(s, i) * 1e4,
  'half subnormal': (s: number, i: number) => bell(s, i) * 2 ** -18,
  tiny: (s: number, i: number) => bell(s, i) * 2e-15,
  'smallest normal': (s: number, i: number) => bell(s, i) * 2 ** -126,
  subnormal: (s: number, i: number) => bell(s, i) * 2 ** -140,
  'last bits': (s: number, i: number) => floor(uniform(s, i) * 5 - 2) * 2 ** -149,
};

export type Kind = keyof typeof kinds;

/** Returns the matrix of a kind and seed, row-major. */
export const matrix = (kind: Kind, seed: number, rows: number, width: number): Float32Array =>
  Float32Array.from({ length: rows * width }, (_, i) => kinds[kind](seed, i));

/**
 * Writes the handwritten digits as images of 8 × 8 grey levels, in one directory for each label, below train/ and heldout/.
 * With `--turned` each digit is also rotated by 90, 180 and 270 degrees, and each rotation is a class: more training data
 * for a model without pretraining.
 *   node tools/run.cjs tools/fetch/digits.ts FOLDER [--digits 0123456789] [--turned] [--held-out 500]
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { encode } from 'fast-png';
import { type Digit, fetchDigits } from './fetch.ts';

const quarterTurn = (levels: readonly number[]) =>
  levels.map((_, at) => levels[(7 - (at % 8)) * 8 + Math.floor(at / 8)]!);

/** Returns a digit in four rotations, by class name. A rotated 0 would be a 0, so it has one. */
function rotations({ label, levels }: Digit): Map<string, readonly number[]> {
  const images = new Map([[String(label), levels]]);
  for (const angle of label === 0 ? [] : [90, 180, 270]) {
    images.set(`${label}-${angle}`, quarterTurn([...images.values()].at(-1)!));
  }
  return images;
}

if (import.meta.main) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      digits: { type: 'string', default: '0123456789' },
      turned: { type: 'boolean', default: false },
      'held-out': { type: 'string', default: '500' },
    },
  });
  const [folder] = positionals;
  if (!folder) {
    console.error(
      'usage: node tools/run.cjs tools/fetch/digits.ts FOLDER [--digits 0123456789] [--turned] [--held-out 500]',
    );
    process.exit(2);
  }
  const digits = fetchDigits().filter(({ label }) => values.digits.includes(String(label)));
  const heldOut = Number(values['held-out']);
  const counts = { train: 0, heldout: 0 };
  digits.forEach((digit, i) => {
    const heldOutBefore = (n: number) => Math.floor((n * heldOut) / digits.length);
    const part = heldOutBefore(i) === heldOutBefore(i + 1) ? 'train' : 'heldout';
    const images = values.turned ? rotations(digit) : new Map([[String(digit.label), digit.levels]]);
    for (const [name, levels] of images) {
      const dir = join(folder, part, name);
      mkdirSync(dir, { recursive: true });
      const data = Uint8Array.from(levels, (level) => Math.round((level * 255) / 16));
      writeFileSync(join(dir, `${String(i).padStart(4, '0')}.png`), encode({ width: 8, height: 8, channels: 1, data }));
      counts[part]++;
    }
  });
  console.log(`${folder}: ${counts.train} training images, ${counts.heldout} held out`);
}

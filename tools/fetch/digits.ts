/**
 * Writes the handwritten digits as images of 8 × 8 grey levels in folders by their number: train/ and heldout/. With
 * `--turned` each is there in four quarter turns, which are classes of their own: more to learn from for a model that has
 * seen nothing.
 *   node tools/run.cjs tools/fetch/digits.ts FOLDER [--digits 0123456789] [--turned] [--held-out 500]
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { encode } from 'fast-png';
import { type Digit, fetchDigits } from './fetch.ts';

const quarterTurn = (levels: readonly number[]) =>
  levels.map((_, at) => levels[(7 - (at % 8)) * 8 + Math.floor(at / 8)]!);

/** A digit in four turns, by name. A turned 0 is a 0. */
function turns({ label, levels }: Digit): Map<string, readonly number[]> {
  const made = new Map([[String(label), levels]]);
  for (const angle of label === 0 ? [] : [90, 180, 270]) {
    made.set(`${label}-${angle}`, quarterTurn([...made.values()].at(-1)!));
  }
  return made;
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
    const share = (n: number) => Math.floor((n * heldOut) / digits.length);
    const part = share(i) === share(i + 1) ? 'train' : 'heldout';
    const images = values.turned ? turns(digit) : new Map([[String(digit.label), digit.levels]]);
    for (const [name, levels] of images) {
      const at = join(folder, part, name);
      mkdirSync(at, { recursive: true });
      const data = Uint8Array.from(levels, (level) => Math.round((level * 255) / 16));
      writeFileSync(join(at, `${String(i).padStart(4, '0')}.png`), encode({ width: 8, height: 8, channels: 1, data }));
      counts[part]++;
    }
  });
  console.log(`${folder}: ${counts.train} images to learn from, ${counts.heldout} held out`);
}

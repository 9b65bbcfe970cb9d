/**
 * Writes the handwritten digits as images of 8 × 8 grey levels in folders by their number: train/ and heldout/.
 *   node tools/run.cjs tools/fetch/digits.ts FOLDER [--digits 0123456789] [--held-out 500]
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { encode } from 'fast-png';
import { fetchDigits } from './fetch.ts';

if (import.meta.main) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      digits: { type: 'string', default: '0123456789' },
      'held-out': { type: 'string', default: '500' },
    },
  });
  const [folder] = positionals;
  if (!folder) {
    console.error('usage: node tools/run.cjs tools/fetch/digits.ts FOLDER [--digits 0123456789] [--held-out 500]');
    process.exit(2);
  }
  const digits = fetchDigits().filter(({ label }) => values.digits.includes(String(label)));
  const heldOut = Number(values['held-out']);
  const counts = { train: 0, heldout: 0 };
  digits.forEach(({ label, levels }, i) => {
    const share = (n: number) => Math.floor((n * heldOut) / digits.length);
    const part = share(i) === share(i + 1) ? 'train' : 'heldout';
    const at = join(folder, part, String(label));
    mkdirSync(at, { recursive: true });
    const data = Uint8Array.from(levels, (level) => Math.round((level * 255) / 16));
    writeFileSync(join(at, `${String(i).padStart(4, '0')}.png`), encode({ width: 8, height: 8, channels: 1, data }));
    counts[part]++;
  });
  console.log(`${folder}: ${counts.train} digits to learn from, ${counts.heldout} held out`);
}

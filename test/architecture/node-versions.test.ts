/** An older Node.js installs the checkout without a warning of npm: no package asks for more than Node.js 20. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { packageRoot } from '../../src/base/index.ts';

/** Whether a range of versions, such as `^18.17 || >=20`, has Node.js 20.20. */
const has20 = (range: string): boolean =>
  range.split('||').some((alternative) =>
    (alternative.match(/[<>=^~]*\s*[\d*x][\d.x]*/g) ?? ['*']).every((comparator) => {
      const [, operator, major, minor] = /^([<>=^~]*)\s*(\d+)?\.?(\d+)?/.exec(comparator)!;
      const version = Number(major ?? 0) * 1000 + Number(minor ?? 0);
      if (operator === '<') return 20_020 < version;
      if (operator!.startsWith('<')) return 20_020 <= version || major === '20';
      if (operator!.startsWith('>')) return 20_020 >= version;
      return major === undefined || (major === '20' && 20_020 >= version);
    }),
  );

test('no installed package needs a newer Node.js than 20', () => {
  assert.deepEqual(
    ['>=22', '^18.17 || >=20', '>=18.0.0', '20.x', '>= 10', '^22.1', '*', '>=12 <20', '>=20.21'].map(has20),
    [false, true, true, true, true, false, true, false, false],
  );
  const lock = JSON.parse(readFileSync(join(packageRoot, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { engines?: { node?: string } }>;
  };
  const asked = Object.entries(lock.packages).filter(([, { engines }]) => engines?.node);
  assert.ok(asked.length > 50, `${asked.length} packages state a version`);
  const tooNew = asked.filter(([, { engines }]) => !has20(engines!.node!)).map(([path]) => path);
  assert.deepEqual(tooNew, []);
});

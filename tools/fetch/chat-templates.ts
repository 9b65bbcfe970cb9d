import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { cacheDir } from '../../src/base/index.ts';
import { once, run, wheel } from './fetch.ts';

export interface NamedTemplate {
  readonly name: string;
  readonly source: string;
}

/** The templates of a folder, by file name. */
export const templatesIn = (dir: string): NamedTemplate[] =>
  (readdirSync(dir, { recursive: true }) as string[])
    .filter((name) => name.endsWith('.jinja'))
    .sort()
    .map((name) => ({ name: basename(name, '.jinja'), source: readFileSync(join(dir, name), 'utf8') }));

/**
 * Downloads chat templates of published models from PyPI: those that llama.cpp collects, from the source package of
 * llama_cpp_python 0.3.36 (MIT), and those that trl 1.16.0 (Apache-2.0) has for its tests and for training, which have
 * {% generation %} blocks. The templates belong to their models' authors. Returns the templates.
 */
export function fetchChatTemplates(): NamedTemplate[] {
  const llamaCpp = once(cacheDir('data', 'chat-templates-llama-cpp'), (workDir) => {
    console.error('Downloading the chat templates of llama.cpp (77 MB, once)');
    const what = 'The chat templates';
    const hash = '832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e';
    writeFileSync(join(workDir, 'requirements.txt'), `llama_cpp_python==0.3.36 --hash=sha256:${hash}\n`);
    const options = ['--quiet', '--no-deps', '--no-binary', ':all:', '--require-hashes', '--dest', workDir];
    run('python3', ['-m', 'pip', 'download', ...options, '-r', 'requirements.txt'], workDir, what);
    run('tar', ['-xzf', 'llama_cpp_python-0.3.36.tar.gz'], workDir, what);
    return join(workDir, 'llama_cpp_python-0.3.36', 'vendor', 'llama.cpp', 'models', 'templates');
  });
  const trl = once(cacheDir('data', 'chat-templates-trl'), (workDir) => {
    console.error('Downloading the chat templates of TRL (1 MB, once)');
    const hash = 'c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396';
    const templates = wheel(workDir, 'trl==1.16.0', hash, 'The chat templates').filter((n) => n.endsWith('.jinja'));
    const dir = join(workDir, 'templates');
    mkdirSync(dir);
    for (const file of templates) cpSync(file, join(dir, basename(file)));
    return dir;
  });
  const named = [llamaCpp, trl].flatMap((dir, i) =>
    templatesIn(dir).map(({ name, source }) => ({ name: `${i === 0 ? 'llama.cpp' : 'trl'}/${name}`, source })),
  );
  const sources = new Set<string>();
  return named.filter(({ source }) => !sources.has(source.trim()) && sources.add(source.trim()));
}

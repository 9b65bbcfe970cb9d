/**
 * Fetches a model from the hub into the user's cache and prints where it is. What is there already is not fetched again,
 * and a download that broke off goes on. HF_TOKEN opens gated models, HF_ENDPOINT names another hub.
 */
import { resolveModel } from 'graft-llm';

const [spec] = process.argv.slice(2);
if (!spec) {
  console.error('usage: node tools/run.cjs examples/pull.ts ORG/NAME[@REVISION][/FILE.gguf]');
  process.exit(2);
}

let shown = '';
const path = await resolveModel(spec, {
  refresh: true, // asks for the newest state of the revision
  progress: ({ file, received, total }) => {
    if (file !== shown) console.log(`${file} (${Math.round((100 * received) / total)} % of all is here)`);
    shown = file;
  },
});
console.log(path);

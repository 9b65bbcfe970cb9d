import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after } from 'node:test';
import { fromWire } from '../../src/base/index.ts';
import type { MemoryPlan } from '../../src/session/index.ts';
import { safetensorsFile } from '../samples/io.ts';
import { golden } from '../support.ts';
import { assertRefused, graft } from './cli.ts';

const dir = mkdtempSync(join(tmpdir(), 'graft-doctor-'));
after(() => rmSync(dir, { recursive: true }));

interface Findings {
  processor: { cores: number; features: Record<string, boolean> };
  libtorch: { root: string; version: string };
  threads: number;
  freeBytes: number;
  totalBytes: number;
  gemm: Record<string, number>;
  precision: string;
  plans: MemoryPlan[];
}

test('doctor measures the machine and says what follows', () => {
  const { status, stdout } = graft(dir, ['doctor', '--json']);
  assert.equal(status, 0);
  const found = fromWire(JSON.parse(stdout)) as Findings;
  assert.ok(found.processor.features.avx2 && found.threads >= 1 && /^2\./.test(found.libtorch.version));
  assert.ok(found.freeBytes > 0 && found.freeBytes <= found.totalBytes);
  assert.ok(found.gemm.float32! > 1 && found.gemm.bfloat16! > 0);
  // The rule by the processor's name says what the measurement says; the rates are far apart on every processor known.
  assert.equal(found.precision, found.gemm.bfloat16! > found.gemm.float32! ? 'mixed' : 'float32');
  // Parameters as the models' own pages give them.
  assert.deepEqual(
    found.plans.map((plan) => plan.parameters),
    [134_515_008, 1_235_814_400, 6_738_415_616],
  );
  for (const { fits, bytesPerToken } of found.plans) {
    assert.deepEqual(
      fits.map((fit) => fit.quantize),
      ['none', 'keep', 'int8', 'nf4'],
    );
    for (const { weightBytes, microTokens } of fits) {
      if (microTokens === null) assert.ok(weightBytes > 0.8 * found.freeBytes);
      else if (microTokens > 32) {
        const activations = microTokens * bytesPerToken;
        assert.ok(activations + weightBytes < found.freeBytes && activations <= Math.max(2e9, weightBytes / 2));
      }
    }
  }
});

test('doctor prints it for people, a line no wider than a terminal', () => {
  const { status, stdout } = graft(dir, ['doctor']);
  assert.equal(status, 0);
  for (const word of ['processor', 'LibTorch', 'GEMM float32', 'precision', '7B (Llama 2)', 'MB a token'])
    assert.ok(stdout.includes(word), word);
  const beyond = stdout.split('\n').filter((line) => line.length > 120 && !line.includes('/'));
  assert.deepEqual(beyond, []);
});

/** A bfloat16 model of zeros, wide enough for every way to pack it. */
function plain(): string {
  const [width, inner, vocab] = [64, 128, 192];
  const layer = (name: string) => `model.layers.0.${name}.weight`;
  const shapes: Record<string, number[]> = {
    'model.embed_tokens.weight': [vocab, width],
    'model.norm.weight': [width],
    'lm_head.weight': [vocab, width],
    [layer('input_layernorm')]: [width],
    [layer('post_attention_layernorm')]: [width],
    ...Object.fromEntries(['q', 'k', 'v', 'o'].map((p) => [layer(`self_attn.${p}_proj`), [width, width]])),
    ...Object.fromEntries(['gate', 'up'].map((p) => [layer(`mlp.${p}_proj`), [inner, width]])),
    [layer('mlp.down_proj')]: [width, inner],
  };
  let end = 0;
  const header = Object.entries(shapes).map(([name, shape]) => {
    const start = end;
    end += 2 * shape.reduce((a, b) => a * b, 1);
    return [name, { dtype: 'BF16', shape, data_offsets: [start, end] }];
  });
  const config = {
    model_type: 'llama',
    vocab_size: vocab,
    hidden_size: width,
    intermediate_size: inner,
    num_hidden_layers: 1,
    num_attention_heads: 4,
  };
  mkdirSync(join(dir, 'plain'), { recursive: true });
  writeFileSync(join(dir, 'plain', 'config.json'), JSON.stringify(config));
  const file = safetensorsFile(Object.fromEntries(header), end);
  writeFileSync(join(dir, 'plain', 'model.safetensors'), file.fill(0, file.length - end));
  return join(dir, 'plain');
}

test('the weights that doctor announces are those that training then holds', () => {
  writeFileSync(join(dir, 'rows.jsonl'), '{"ids": [1, 2, 3]}\n');
  let compared = 0;
  for (const model of [plain(), golden('gguf', 'llama.gguf')]) {
    const { stdout } = graft(dir, ['doctor', '--json', '--model', model]);
    const [plan] = (fromWire(JSON.parse(stdout)) as Findings).plans;
    for (const { quantize, weightBytes } of plan!.fits) {
      if (model.endsWith('.gguf') && (quantize === 'nf4' || quantize === 'int8')) continue; // too narrow for these
      const recipe = {
        model,
        quantize,
        method: { type: 'lora', target_modules: 'all-linear' },
        data: { train: 'rows.jsonl', format: 'tokens' },
        run: { dir: 'out' },
      };
      writeFileSync(join(dir, 'recipe.yaml'), JSON.stringify(recipe));
      const ended = graft(dir, ['train', 'recipe.yaml', '--fresh']);
      assert.equal(ended.status, 0, ended.stderr);
      const [start] = readFileSync(join(dir, 'out', 'events.jsonl'), 'utf8').split('\n');
      const held = (JSON.parse(start!) as { weight_bytes: number }).weight_bytes;
      assert.equal(held, weightBytes, `${model} with quantize: ${quantize}`);
      compared++;
    }
  }
  assert.equal(compared, 6);
});

test('a model that is not there', () => {
  assertRefused(graft(dir, ['doctor', '--model', 'none.gguf']), 2, /none\.gguf: The model was not found/);
});

test('GRAFT_MKL: generic is said; a value of a variable that would be ignored is refused', () => {
  const generic = graft(dir, ['doctor', '--json'], { GRAFT_MKL: 'generic' });
  assert.equal(generic.status, 0, generic.stderr);
  const vendor = /vendor_id\s*: (\w+)/.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1];
  const want = vendor === 'GenuineIntel' ? /MKL for this processor$/ : /MKL for any processor$/;
  assert.match(JSON.parse(generic.stdout).kernels, want);
  assertRefused(
    graft(dir, ['doctor'], { GRAFT_MKL: 'off' }),
    2,
    /GRAFT_MKL is 'off', and the only value that it takes is generic/,
  );
  assertRefused(
    graft(dir, ['doctor'], { GRAFT_COMPOSITE: 'true' }),
    2,
    /GRAFT_COMPOSITE is 'true', and the only value that it takes is 1/,
  );
});

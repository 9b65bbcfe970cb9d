/** GGUF files with layers in many block formats, written by the gguf package, against transformers on the weights in them. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test, { before } from 'node:test';
import { ChatTemplate, tokenizerOf } from '../../src/data/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { Linear, moduleAt, namedModules, namedTensors } from '../../src/nn/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { golden, integers, logitsOf, numbers, readTensors, relativeError } from '../support.ts';

before(() => startEngine());

interface Facts {
  provenance: { tolerance: { logits: number } };
  config: Record<string, unknown>;
  chat_template: string;
  tokenizer: { text: string; ids: number[] }[];
}

for (const name of ['llama', 'qwen2']) {
  const file = golden('gguf', `${name}.gguf`);
  const facts = JSON.parse(readFileSync(golden('gguf', `${name}.golden.json`), 'utf8')) as Facts;

  for (const quantize of ['none', 'keep'] as const) {
    test(`${name}.gguf, quantize ${quantize}: logits and dense weights are transformers'`, (t) => {
      using _ = scope();
      const { tensors } = readTensors(golden('gguf', `${name}.golden.safetensors`));
      using model = loadModel(file, { quantize });
      const rows = [0, 1].map((r) => integers(tensors.get(`ids.${r}`)!));
      rows.forEach((ids, r) => {
        const want = numbers(tensors.get(`logits.${r}`)!);
        const error = relativeError(logitsOf(model, ids), want);
        assert.ok(error <= facts.provenance.tolerance.logits, `logits of row ${r} differ by ${error}`);
        // Token by token, the blocks are read by another kernel.
        const cut = relativeError(logitsOf(model, ids.slice(0, 2)), want.subarray(0, 2 * model.vocabSize));
        assert.ok(cut <= facts.provenance.tolerance.logits, `the first two tokens of row ${r} differ by ${cut}`);
      });

      const vectors = new Map(namedTensors(model.root));
      let compared = 0;
      for (const [key, want] of tensors) {
        if (!key.startsWith('weight.')) continue;
        const path = key.slice('weight.'.length);
        const got = path.endsWith('.bias')
          ? vectors.get(path)!
          : (moduleAt(model.root, path.replace(/\.weight$/, '')) as Linear).denseWeight();
        assert.deepEqual(numbers(got), numbers(want), path);
        compared++;
      }
      assert.equal(compared, { llama: 2, qwen2: 4 }[name]);

      const linears = [...namedModules(model.root)].map(([, m]) => m).filter((m) => m instanceof Linear);
      const formats = [...new Set(linears.map((m) => m.format))].sort((a, b) => a - b);
      t.diagnostic(`${linears.length} layers in the formats ${formats.join(', ')}`);
      assert.deepEqual(
        formats,
        quantize === 'none' ? [-1] : { llama: [1, 2, 3, 6, 7, 8, 30], qwen2: [-1, 1, 3, 8] }[name],
      );
      assert.ok(linears.every(({ weight, format }) => weight.dtype === (format < 0 ? 'float32' : 'uint8')));
    });
  }

  test(`${name}.gguf: its config and its tokenizer are the ones that it was made from`, (t) => {
    using model = loadModel(file);
    const given = Object.entries(model.config).filter(([key, value]) => value != null && key in facts.config);
    for (const [key, value] of given) {
      const want = facts.config[key];
      if (typeof want === 'number') assert.ok(Math.abs((value as number) - want) <= 1e-6 * Math.abs(want), key);
      else assert.deepEqual(value, want, key);
    }
    assert.ok(given.length >= 10);

    const tokenizer = tokenizerOf(file);
    for (const { text, ids } of facts.tokenizer) {
      assert.deepEqual(Array.from(tokenizer.encode(text, { addSpecialTokens: false })), ids, JSON.stringify(text));
    }
    assert.ok(facts.tokenizer.length >= 60);
    t.diagnostic(`${given.length} fields, ${facts.tokenizer.length} texts`);
    assert.equal(tokenizer.chatTemplate, facts.chat_template);
    assert.equal(
      ChatTemplate.of(tokenizer)?.render([{ role: 'user', content: 'hi' }], { addGenerationPrompt: true }),
      '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n',
    );
  });
}

import assert from 'node:assert/strict';
import { join } from 'node:path';
import test from 'node:test';
import { tinyModel } from '../../../test/samples/tiny.ts';
import { temporary } from '../../../test/support.ts';
import { loadTokenizer } from '../../data/index.ts';
import { Session } from '../index.ts';

test('a label is scored as it follows the prompt in the rows, however it is written under labels', async () => {
  using dir = temporary();
  const path = tinyModel(join(dir.path, 'model'));
  await using session = new Session();
  await using model = await session.load(path);
  const tokenizer = loadTokenizer(path);
  const prompts = ['Is it so?', 'And then? Say:', 'x'];

  /** The share of each answer's likelihood from the logits of whole rows. */
  const expected = async (prompt: string, answers: readonly string[]): Promise<number[]> => {
    const before = [...tokenizer.encode(prompt)];
    const ids = answers.map((answer) => [...before, ...tokenizer.encode(answer, { addSpecialTokens: false })]);
    const scores = (await model.logits(ids)).map(({ data, shape }, a) => {
      const width = shape.at(-1)!;
      let score = 0;
      for (let i = before.length; i < ids[a]!.length; i++) {
        const row = data.subarray((i - 1) * width, i * width);
        score += row[ids[a]![i]!]! - Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0));
      }
      return score;
    });
    const weights = scores.map((score) => Math.exp(score - Math.max(...scores)));
    return weights.map((weight) => weight / weights.reduce((a, b) => a + b));
  };

  let compared = 0;
  for (const [space, labels] of [
    [' ', ['yes', 'no']],
    [' ', [' yes', ' no']],
    ['', ['yes', 'no']],
    ['\n', [' yes', 'no']],
  ] as const) {
    const rows = prompts.map((prompt, i) => ({ prompt, completion: `${space}${i % 2 ? 'no' : 'yes'}` }));
    const { classifications, accuracy } = await model.classify(rows, { labels });
    let right = 0;
    for (const [i, prompt] of prompts.entries()) {
      const want = await expected(prompt, [`${space}yes`, `${space}no`]);
      const got = labels.map((label) => classifications[i]!.probabilities[label]!);
      want.forEach((share, c) => {
        assert.ok(Math.abs(share - got[c]!) <= 1e-4, `${JSON.stringify(space)}: ${got} ${want}`);
      });
      if (want[i % 2]! > 0.5) right++;
      compared++;
    }
    assert.equal(accuracy!.value, right / prompts.length);
    const evaluated = await model.evaluate(rows, { labels });
    assert.equal(evaluated.accuracy!.value, accuracy!.value);
  }
  assert.equal(compared, 12);

  // Rows that only ask: labels follow as they are written, and where that may be a guess, it is told.
  const asking = prompts.map((prompt) => ({ prompt }));
  for (const [labels, told] of [
    [[' yes', ' no'], 0],
    [['yes', 'no'], 1],
  ] as const) {
    const { classifications, accuracy, notes } = await model.classify(asking, { labels });
    const want = await expected(prompts[0]!, labels);
    want.forEach((share, c) => {
      assert.ok(Math.abs(share - classifications[0]!.probabilities[labels[c]!]!) <= 1e-4, `${labels}`);
    });
    assert.equal(accuracy, null);
    assert.equal(notes.length, told, notes.join());
  }

  const mixed = [
    { prompt: 'a', completion: ' yes' },
    { prompt: 'b', completion: 'no' },
  ];
  await assert.rejects(
    model.classify(mixed, { labels: ['yes', 'no'] }),
    /rows\[1\]: the completion begins with "", and that of rows\[0\] with " "\. Write the white space/,
  );
  const same = model.classify(mixed.slice(0, 1), { labels: ['yes', ' yes'] });
  await assert.rejects(same, /at least two different labels/);
});

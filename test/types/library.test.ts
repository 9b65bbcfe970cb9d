/** Types of the library: what compiles, and what must not. `tsc` checks them; the test counts the statements. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { expectTypeOf } from 'expect-type';
import {
  type Classification,
  type ErrorKind,
  type EvaluateResult,
  type GenerateResult,
  type GraftError,
  type LoadedModel,
  type MethodInput,
  type Metric,
  type Prediction,
  type PredictResult,
  type Progress,
  type RecipeInput,
  type RowInput,
  type Running,
  Session,
  serve,
  type TrainEvent,
  type TrainResult,
} from 'graft-llm';

/** Never called: it is only compiled. */
export async function compiled(session: Session, model: LoadedModel, rows: AsyncIterable<RowInput>) {
  const base = { model: 'm', data: 'rows.jsonl', run: { dir: 'out' } } as const;
  expectTypeOf({ ...base, method: { type: 'lora', r: 8 } } as const).toExtend<RecipeInput>();
  expectTypeOf({
    ...base,
    data: rows,
    method: { type: 'prefix', num_virtual_tokens: 8 },
  } as const).toExtend<RecipeInput>();
  expectTypeOf({ ...base, method: [{ type: 'lora' }, { type: 'ia3' }] } as const).toExtend<RecipeInput>();
  // @ts-expect-error a misspelt field
  session.train({ ...base, method: { type: 'lora' }, trian: {} });
  // @ts-expect-error a field of no method
  session.train({ ...base, method: { type: 'lora', rank: 8 } });
  // @ts-expect-error a field of another method
  session.train({ ...base, method: { type: 'ia3', lora_alpha: 8 } });
  // @ts-expect-error a method that does not exist
  session.train({ ...base, method: { type: 'lorra' } });
  // @ts-expect-error a required field of the method is missing
  session.train({ ...base, method: { type: 'fusion' } });
  // @ts-expect-error a wrong type
  session.train({ ...base, method: { type: 'lora', r: '8' } });
  // @ts-expect-error a wrong choice
  session.train({ ...base, method: { type: 'lora' }, train: { schedule: 'cosin' } });
  // @ts-expect-error no data
  session.train({ model: 'm', method: { type: 'lora' }, run: { dir: 'out' } });
  // @ts-expect-error data beside tasks
  session.train({ ...base, method: { type: 'lora' }, tasks: { a: { data: 'a.jsonl' } } });
  expectTypeOf<Extract<MethodInput, { type: 'lora' }>['r']>().toEqualTypeOf<number | undefined>();

  await using server = await serve({ model: 'm', adapters: 'dir', resolveAdapter: async (name) => `found/${name}` });
  expectTypeOf(server.port).toBeNumber();
  // @ts-expect-error an option that a server has not
  serve({ model: 'm', tokenizer: 't' });
  // @ts-expect-error a limit that there is not
  serve({ model: 'm', limits: { bodies: 1 } });
  expectTypeOf(session.train({ ...base, method: { type: 'lora' } })).toEqualTypeOf<Running<TrainEvent, TrainResult>>();
  expectTypeOf(await session.load('m')).toEqualTypeOf<LoadedModel>();
  for await (const event of session.train({ ...base, method: { type: 'lora' } })) {
    if (event.type === 'step') expectTypeOf(event.gradNorm).toBeNumber();
    if (event.type === 'eval') expectTypeOf(event.metrics).toEqualTypeOf<readonly Metric[]>();
    // @ts-expect-error an event that does not exist
    if (event.type === 'stop') return;
  }
  expectTypeOf(model.generate('a')).toEqualTypeOf<Running<string, GenerateResult>>();
  for await (const piece of model.generate([{ role: 'user', content: 'a' }])) expectTypeOf(piece).toBeString();
  expectTypeOf(model.predict(rows)).toEqualTypeOf<Running<Prediction, PredictResult>>();
  expectTypeOf(model.evaluate('rows.jsonl')).toEqualTypeOf<Running<Progress, EvaluateResult>>();
  const { classifications } = await model.classify([{ prompt: 'a', completion: 'b' }], { labels: ['a', 'b'] });
  expectTypeOf(classifications).toEqualTypeOf<readonly Classification[]>();
  // @ts-expect-error labels are required
  model.classify(rows, {});
  // @ts-expect-error an option that does not exist
  model.generate('a', { max_new_tokens: 3 });
  // @ts-expect-error a wrong choice
  session.load('m', { quantize: 'int4' });
  expectTypeOf<GraftError['kind']>().toEqualTypeOf<ErrorKind>();
  expectTypeOf<TrainResult>().not.toHaveProperty('eval_loss');
  expectTypeOf<TrainResult['evalLoss']>().toEqualTypeOf<number | null>();
}

test('wrong programs do not compile, right ones have types without unknown', (t) => {
  assert.equal(typeof Session, 'function');
  const source = readFileSync(import.meta.filename, 'utf8');
  const refused = source.match(/@ts-expect-error/g)!.length - 1;
  const typed = source.match(/expectTypeOf/g)!.length - 1;
  assert.ok(refused >= 13 && typed >= 17, `${refused} refused, ${typed} typed`);
  t.diagnostic(`${refused} programs refused and ${typed} types compared by the compiler`);
});

import assert from 'node:assert/strict';
import test from 'node:test';
import { fromWire, toWire } from './wire.ts';

test('names become snake_case on the wire and come back; keys of maps stay', () => {
  const event = {
    type: 'start',
    heldOut: 3,
    peakRssMb: 1.5,
    tokensPerSecond: 9,
    prefillTokensPerSecond: null,
    tasks: { myTask: { heldOut: 1, evalLoss: 2 } },
    probabilities: { camelCase: 1 },
    id: { userId: 7, row_number: 3 },
    metrics: [{ name: 'macroF1', value: 1 }],
    text: 'heldOut',
  };
  const wire = {
    type: 'start',
    held_out: 3,
    peak_rss_mb: 1.5,
    tokens_per_s: 9,
    prefill_tokens_per_s: null,
    tasks: { myTask: { held_out: 1, eval_loss: 2 } },
    probabilities: { camelCase: 1 },
    id: { userId: 7, row_number: 3 },
    metrics: [{ name: 'macroF1', value: 1 }],
    text: 'heldOut',
  };
  assert.deepEqual(toWire(event), wire);
  assert.deepEqual(fromWire(wire), event);
});

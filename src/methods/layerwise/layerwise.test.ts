/** What the policies choose and when rules come, without a model; which settings are refused. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { startEngine } from '../../engine/index.ts';
import type { ModelPart } from '../../nn/index.ts';
import { ops, scope } from '../../tensor/index.ts';
import type { LayerPolicy, PolicyRun } from '../shared/index.ts';
import { choosing } from './choices.ts';
import { type LayerwiseConfig, layerwiseConfig, requireFields } from './config.ts';
import { scheduled } from './rules.ts';
import { stateSize } from './schedule-state.ts';

before(() => startEngine());

const layers = 4;
const everything: readonly ModelPart[] = ['embeddings', 0, 1, 2, 3, 'head'];
const run = (more: Partial<PolicyRun> = {}): PolicyRun => ({
  parts: new Set(everything),
  trainsMore: false,
  steps: 24,
  severalTasks: false,
  seed: 0,
  ...more,
});

type Fields = Readonly<Record<string, unknown>>;
const parsed = (fields: Fields): LayerwiseConfig => {
  const config = layerwiseConfig.parse(fields);
  requireFields(config);
  return config;
};
const chooser = (fields: Fields, sharesTable = false): LayerPolicy => {
  const config = parsed(fields);
  return choosing(config.policy as 'lisa', config, { layers, sharesTable });
};
const schedule = (rules: readonly Fields[]): LayerPolicy => {
  const state = ops.zeros([stateSize(layers)], { dtype: 'float64' });
  return scheduled(parsed({ policy: 'schedule', rules }).rules!, layers, state);
};

/** What trains in each step, and which parts begin anew there, as text. */
function course(
  policy: LayerPolicy,
  of: PolicyRun = run(),
  loss = (_step: number) => 1,
  norm = (_step: number, _part: ModelPart): number | undefined => 1,
) {
  using _ = scope();
  const notes = [...policy.begin(of)];
  const trained: string[] = [];
  const begun: string[] = [];
  for (let step = 0; step < of.steps; step++) {
    const stateOf = policy.at(step);
    const parts = everything.filter((part) => of.parts.has(part));
    const names = (all: readonly ModelPart[]) => all.map((part) => String(part)[0]).join('');
    trained.push(names(parts.filter((part) => stateOf(part).trains)));
    begun.push(names(parts.filter((part) => stateOf(part).since === step)));
    policy.observe?.(step, loss(step), (part) => norm(step, part));
    notes.push(...(policy.takeNotes?.() ?? []));
  }
  return { trained, begun, notes };
}

/** The same text for steps in a row, as [text, how many]. */
const runs = (texts: readonly string[]) =>
  texts.reduce<[string, number][]>((all, text) => {
    if (all.at(-1)?.[0] === text) all.at(-1)![1]++;
    else all.push([text, 1]);
    return all;
  }, []);

test('last: the last layers and the head, always; a shared table is named', () => {
  assert.deepEqual(runs(course(chooser({ policy: 'last', layers: 2 })).trained), [['23h', 24]]);
  assert.deepEqual(runs(course(chooser({ policy: 'last', layers: 4, always: [] })).trained), [['0123', 24]]);
  const { notes } = course(chooser({ policy: 'last', layers: 1 }, true));
  assert.match(notes.join(), /the output projection is the table of the embeddings, which stays frozen/);
  assert.deepEqual(course(chooser({ policy: 'last', layers: 1, always: ['embeddings', 'head'] }, true)).notes, []);
});

test('lisa: as many layers as it says in every turn, all of them in the long run, the same for the same seed', () => {
  const fields = { policy: 'lisa', layers: 2, every: 3 };
  const { trained, begun } = course(chooser(fields), run({ steps: 240 }));
  const times = new Map<string, number>();
  trained.forEach((text, step) => {
    assert.match(text, /^e\d\dh$/);
    assert.equal(text, trained[step - (step % 3)], `step ${step}`);
    if (step % 3 === 0)
      assert.ok(
        [...text.slice(1, 3)].every((layer) => begun[step]!.includes(layer)),
        'each begins anew',
      );
    else assert.equal(begun[step], '');
    for (const layer of text.slice(1, 3)) times.set(layer, (times.get(layer) ?? 0) + 1);
  });
  // 80 turns of 2 of 4 layers: each about 40 times, ± 3 standard deviations of 4.5.
  assert.deepEqual([...times.keys()].sort(), ['0', '1', '2', '3']);
  for (const count of times.values()) assert.ok(Math.abs(count / 3 - 40) < 14, String(count));
  assert.deepEqual(course(chooser(fields), run({ steps: 240 })).trained, trained);
  assert.notDeepEqual(course(chooser(fields), run({ steps: 240, seed: 1 })).trained, trained);
  // The choice of a step does not depend on how long the run is, nor on the steps before it.
  const resumed = chooser(fields);
  resumed.begin(run({ steps: 500 }));
  assert.deepEqual(
    everything
      .filter((part) => resumed.at(200)(part).trains)
      .map((part) => String(part)[0])
      .join(''),
    trained[200],
  );
});

test('badam: one block at a time, in the order that it says', () => {
  const of = (more: Fields) =>
    runs(course(chooser({ policy: 'badam', every: 4, ...more })).trained).map(([text]) => text);
  assert.deepEqual(of({ order: 'ascending' }), ['0', '1', '2', '3', '0', '1']);
  assert.deepEqual(of({ order: 'descending' }), ['3', '2', '1', '0', '3', '2']);
  assert.deepEqual(of({ order: 'fixed', blocks: ['head', 2, 'embeddings'] }), ['h', '2', 'e', 'h', '2', 'e']);
  assert.deepEqual(of({ order: 'fixed', blocks: 2 }), ['2']);
  assert.deepEqual(of({ order: 'ascending', blocks: ['head', 'layers', 'embeddings'] }), [
    'e',
    '0',
    '1',
    '2',
    '3',
    'h',
  ]);
  assert.deepEqual(of({ order: 'ascending', blocks: '1-2', always: 'head' }), ['1h', '2h', '1h', '2h', '1h', '2h']);
  const { trained } = course(chooser({ policy: 'badam', every: 1 }), run({ steps: 40 }));
  const rounds = Array.from({ length: 10 }, (_, i) => trained.slice(4 * i, 4 * i + 4));
  for (const round of rounds) assert.deepEqual([...round].sort(), ['0', '1', '2', '3']);
  assert.ok(new Set(rounds.map((round) => round.join())).size > 5, 'in other orders');
  // A block that stays begins anew in every turn.
  assert.equal(
    course(chooser({ policy: 'badam', every: 6, order: 'fixed', blocks: 1 })).begun.filter((text) => text.includes('1'))
      .length,
    4,
  );
});

test('layers that a run does not reach are named', () => {
  assert.deepEqual(course(chooser({ policy: 'badam' })).notes, ['layerwise: in 24 steps, 1 of 4 blocks are trained']);
  assert.match(course(chooser({ policy: 'lisa' })).notes.join(), /in 24 steps, \d of 4 layers are trained/);
});

test('rules by step freeze and thaw, for a time or for good; later rules win', () => {
  const { trained, begun } = course(
    schedule([
      { freeze: ['embeddings', '0-1'], step: 2 },
      { train: 1, step: 6 },
      { freeze: 'layers', step: 10, for: 3 },
      { train: 3, step: 10 },
      { freeze: 'head', step: 20 },
    ]),
  );
  // After the three steps, layer 0 is frozen as before, and layers 1 and 2 train again.
  assert.deepEqual(runs(trained), [
    ['e0123h', 2],
    ['23h', 4],
    ['123h', 4],
    ['3h', 3],
    ['123h', 7],
    ['123', 4],
  ]);
  assert.equal(begun[6], '1');
  assert.equal(begun[13], '12');
});

test('a rule with an end counts over those without one until then, also where another comes before', () => {
  const { trained } = course(
    schedule([
      { freeze: 0, step: 2, for: 8 },
      { train: 0, step: 5, for: 3 },
      { freeze: [1, 2], step: 10 },
      { freeze: 1, step: 12, for: 2 },
      { train: 2, step: 14, for: 4 },
      { train: 2, step: 16 },
      { train: 3, step: 15, for: 2 },
    ]),
  );
  // Layer 0: its second rule ends at 8, and the first is over then. Layer 1 stays frozen. Layer 2: the rule of step 16 lasts.
  assert.deepEqual(runs(trained), [
    ['e0123h', 2],
    ['e123h', 3],
    ['e0123h', 5],
    ['e03h', 4],
    ['e023h', 10],
  ]);
});

test('what trains in no step is known before the first', () => {
  const never = (policy: LayerPolicy) => {
    using _ = scope();
    policy.begin(run());
    return everything.filter((part) => policy.neverTrains(part)).join();
  };
  assert.equal(never(chooser({ policy: 'last', layers: 3 })), 'embeddings,0');
  assert.equal(never(chooser({ policy: 'lisa', always: [] })), 'embeddings,head');
  assert.equal(never(chooser({ policy: 'badam', blocks: ['2-3'] })), 'embeddings,0,1,head');
  const rules = [
    { freeze: ['embeddings', '0-2'], step: 0 },
    { train: 1, step: 9, for: 2 },
    { freeze: 3, step: 0, for: 2 },
    { freeze: 'head', step: 3 },
  ];
  assert.equal(never(schedule(rules)), 'embeddings,0,2');
});

test('rules with a plateau come in turn, where the loss no longer falls', () => {
  // Falls for ten steps, stays for ten, falls again, stays.
  const loss = (step: number) => 3 - 0.1 * Math.min(step, 10) - (step > 20 ? 0.1 * Math.min(step - 20, 10) : 0);
  const { trained } = course(
    schedule([
      { freeze: ['embeddings', 0], plateau: 4, min_fall: 0.02 },
      { freeze: 1, plateau: 4 },
      { train: 'embeddings', step: 39 },
    ]),
    run({ steps: 48 }),
    loss,
  );
  // Means of steps 12-15 and 16-19 are equal. Counted anew from step 20 on, they fall until 36-39, which is as 32-35.
  assert.deepEqual(runs(trained), [
    ['e0123h', 20],
    ['123h', 19],
    ['e123h', 1],
    ['e23h', 8],
  ]);
});

test('rules with gradient_norm freeze each part for itself, and a time later it is tried again', () => {
  const norm = (step: number, part: ModelPart) => (part === 1 ? 1 / (step + 1) : part === 2 && step > 11 ? 0.01 : 1);
  const { trained } = course(
    schedule([
      { freeze: [0, 1], gradient_norm: 0.3, window: 4 },
      { freeze: [2, 3], gradient_norm: 0.3, window: 4, for: 4 },
    ]),
    run(),
    undefined,
    norm,
  );
  // Layer 1: means of 0.52, 0.16 and 0.11 < 0.3 · 0.52. Layer 2: small in steps 12 to 15, away in 16 to 19, small again in 20 to 23.
  assert.deepEqual(runs(trained), [
    ['e0123h', 12],
    ['e023h', 4],
    ['e03h', 4],
    ['e023h', 4],
  ]);
});

test('parts of a rule that have no trained parameters are named', () => {
  const { notes } = course(schedule([{ freeze: ['embeddings', '0-1'], step: 2 }]), run({ parts: new Set([1, 2, 3]) }));
  assert.deepEqual(notes, ['layerwise: rule 1 names embeddings, layer 0, of which no parameter is trained']);
});

test('a part without a gradient is named once, where a rule watches it', () => {
  const rules = [{ freeze: '0-1', gradient_norm: 0.5, window: 2 }];
  const { trained, notes } = course(schedule(rules), run(), undefined, (step, part) =>
    part === 0 ? undefined : 1 / (step + 1),
  );
  assert.deepEqual(notes, ['layerwise: rule 1 watches layer 0, which has no gradient, so the rule does not come']);
  assert.deepEqual(runs(trained), [
    ['e0123h', 4],
    ['e023h', 20],
  ]);
});

test('the last part that trains is not frozen by a rule that watches, and a note says so', () => {
  const rules = [
    { freeze: ['embeddings', 0, 1, 2, 'head'], step: 2 },
    { freeze: 3, gradient_norm: 5, window: 2 },
  ];
  const { trained, notes } = course(schedule(rules), run({ steps: 6 }));
  assert.deepEqual(runs(trained), [
    ['e0123h', 2],
    ['3', 4],
  ]);
  assert.deepEqual(notes, [
    'layerwise: after 4 steps only layer 3 trains, and is not frozen',
    'layerwise: after 6 steps only layer 3 trains, and is not frozen',
  ]);
  // Where a head or virtual tokens train anyway, it is frozen.
  const more = course(schedule(rules), run({ steps: 6, trainsMore: true }));
  assert.deepEqual(
    [runs(more.trained), more.notes],
    [
      [
        ['e0123h', 2],
        ['3', 2],
        ['', 2],
      ],
      [],
    ],
  );
});

const refusals: Readonly<Record<string, readonly [() => unknown, RegExp]>> = {
  'no number of layers': [() => chooser({ policy: 'last' }), /policy last needs layers/],
  'more layers than there are': [
    () => chooser({ policy: 'last', layers: 5 }),
    /layers is 5, and the model has 4 layers/,
  ],
  'lisa of too many': [() => chooser({ policy: 'lisa', layers: 9 }), /layers is 9, and the model has 4 layers/],
  'a field of another policy': [
    () => parsed({ policy: 'last', layers: 1, every: 3 }),
    /policy last has no field every.*Its fields: layers, always/s,
  ],
  'rules for lisa': [
    () => parsed({ policy: 'lisa', rules: [{ freeze: 0, step: 1 }] }),
    /policy lisa has no field rules/,
  ],
  'no rules': [() => parsed({ policy: 'schedule' }), /policy schedule needs rules/],
  'fixed order of nothing': [() => parsed({ policy: 'badam', order: 'fixed' }), /order: fixed needs blocks/],
  'a block that does not exist': [
    () => chooser({ policy: 'badam', blocks: [0, 4] }),
    /blocks names layer 4, and the model has 4 layers, 0 to 3/,
  ],
  'a range that does not': [() => chooser({ policy: 'badam', blocks: '2-7' }), /blocks names layer 7/],
  'a range from the end': [() => chooser({ policy: 'badam', blocks: '3-1' }), /the range 3-1, which is empty/],
  'always a layer that does not exist': [() => chooser({ policy: 'lisa', always: 6 }), /always names layer 6/],
  'a block that trains always': [
    () => chooser({ policy: 'badam', blocks: ['head', 1], always: 'head' }).begin(run()),
    /head is a block and trains always/,
  ],
  'a part without parameters': [
    () => chooser({ policy: 'lisa', always: 'head' }).begin(run({ parts: new Set([0, 1, 2]) })),
    /always names head, of which no parameter is trained.*: 0, 1, 2/s,
  ],
  'last layers without parameters': [
    () => chooser({ policy: 'last', layers: 1 }).begin(run({ parts: new Set([0, 1]) })),
    /no parameter of the last layers \(3\) is trained/,
  ],
  'fewer layers with parameters': [
    () => chooser({ policy: 'lisa', layers: 2 }).begin(run({ parts: new Set([1]) })),
    /layers is 2, and 1 layer has trained parameters/,
  ],
  'a rule of a layer that does not exist': [
    () =>
      schedule([
        { freeze: 0, step: 1 },
        { freeze: 7, step: 1 },
      ]),
    /rule 2 names layer 7/,
  ],
  'a rule after the end': [
    () => schedule([{ freeze: 0, step: 24 }]).begin(run()),
    /rule 1 comes after 24 steps at the earliest, and the run has 24/,
  ],
  'a plateau longer than the run': [
    () => schedule([{ freeze: 0, plateau: 12 }]).begin(run()),
    /rule 1 comes after 24 steps at the earliest/,
  ],
  'a mean longer than the run': [
    () => schedule([{ freeze: 0, gradient_norm: 0.1, window: 12 }]).begin(run()),
    /rule 1 comes after 24 steps at the earliest/,
  ],
  'nothing trains from the beginning': [
    () => schedule([{ freeze: ['embeddings', 'layers', 'head'], step: 0 }]).begin(run()),
    /after 0 steps nothing trains: the rules freeze head too/,
  ],
  'nothing trains later': [
    () =>
      schedule([
        { freeze: ['embeddings', '0-2', 'head'], step: 3 },
        { freeze: 3, step: 9, for: 2 },
      ]).begin(run()),
    /after 9 steps nothing trains: the rules freeze layer 3 too/,
  ],
  'nothing trains after a time': [
    () =>
      schedule([
        { freeze: ['embeddings', 'layers'], step: 3 },
        { freeze: 'head', step: 2, for: 1 },
        { train: 0, step: 5, for: 2 },
        { freeze: 'head', step: 6 },
      ]).begin(run()),
    /after 7 steps nothing trains: the rules freeze layer 0 too/,
  ],
  'a part that is watched twice': [
    () =>
      schedule([
        { freeze: '0-2', gradient_norm: 0.1 },
        { freeze: 2, gradient_norm: 0.2 },
      ]).begin(run()),
    /rule 1 and rule 2 both watch the gradient_norm of layer 2/,
  ],
  'a rule of nothing that trains': [
    () => schedule([{ freeze: 'head', step: 1 }]).begin(run({ parts: new Set([0, 1]) })),
    /rule 1 names head, of which no parameter is trained/,
  ],
  'a plateau of several tasks': [
    () => schedule([{ freeze: 0, plateau: 3 }]).begin(run({ severalTasks: true })),
    /rule 1 compares steps, and those of several tasks/,
  ],
  'two actions': [
    () => parsed({ policy: 'schedule', rules: [{ freeze: 0, train: 1, step: 1 }] }),
    /either freeze or train/,
  ],
  'no time': [() => parsed({ policy: 'schedule', rules: [{ freeze: 0 }] }), /one of step, plateau and gradient_norm/],
  'a gradient of what is frozen': [
    () => parsed({ policy: 'schedule', rules: [{ train: 0, gradient_norm: 1 }] }),
    /a frozen part has no gradient_norm/,
  ],
  'a window of nothing': [
    () => parsed({ policy: 'schedule', rules: [{ freeze: 0, step: 1, window: 3 }] }),
    /window is for gradient_norm/,
  ],
  'a fall of nothing': [
    () => parsed({ policy: 'schedule', rules: [{ freeze: 0, step: 1, min_fall: 0.1 }] }),
    /min_fall is for plateau/,
  ],
  'a name that is none': [
    () => parsed({ policy: 'badam', blocks: 'tail' }),
    /a part is a layer’s number, 0-5, layers, embeddings or head/,
  ],
};

for (const [name, [act, why]] of Object.entries(refusals)) {
  test(`refused: ${name}`, () => {
    using _ = scope();
    assert.throws(act, (error: Error & { hint?: string }) => {
      assert.match(`${error.message} ${error.hint ?? ''}`, why);
      return true;
    });
  });
}

test('so many settings were refused', () => assert.equal(Object.keys(refusals).length, 31));

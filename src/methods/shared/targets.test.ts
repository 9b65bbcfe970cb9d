import assert from 'node:assert/strict';
import test from 'node:test';
import { selectTargets, unmatchedTargets } from './index.ts';

const candidates = [0, 1].flatMap((layer) =>
  ['q_proj', 'v_proj'].map((name) => ({ path: `model.layers.${layer}.attn.${name}`, kind: 'linear' as const })),
);

test('names and layers that select nothing are told, also where others do', () => {
  const told = (config: object) => unmatchedTargets(candidates, config);
  assert.deepEqual(told({ target_modules: ['q_proj', 'v_porj'] }), [
    "target_modules 'v_porj' matches no module; did you mean 'v_proj'?",
  ]);
  assert.deepEqual(told({ target_modules: 'all-linear', exclude_modules: ['v_proj', 'head'] }), [
    "exclude_modules 'head' matches no module",
  ]);
  assert.deepEqual(told({ exclude_modules: '.*\\.mlp' }), ["exclude_modules '.*\\.mlp' matches no module"]);
  assert.deepEqual(told({ target_modules: ['q_proj'], layers_to_transform: [1, 2] }), [
    'layers_to_transform: the model has no layer 2',
  ]);
  assert.deepEqual(
    told({ target_modules: ['q_proj'], layers_to_transform: 1, exclude_modules: ['0.attn.q_proj'] }),
    [],
  );
  assert.deepEqual(told({}), []);
});

test('where nothing is selected, the field is named that leaves it out', () => {
  const refused = (config: object, problem: RegExp) =>
    assert.throws(() => selectTargets(candidates, config, []), problem);
  refused({ target_modules: 'all-linear', exclude_modules: '.*' }, /exclude_modules "\.\*" leaves out the 4 modules/);
  refused({ target_modules: ['q_proj'], modules_to_save: ['attn'] }, /modules_to_save \["attn"\] names the 2 modules/);
  refused(
    { target_modules: ['q_proj'], layers_to_transform: [4] },
    /layers_to_transform \[4\] has none of the 2 modules/,
  );
  refused({ target_modules: ['q_prj'] }, /target_modules selects no module: .*Did you mean 'q_proj'/);
});

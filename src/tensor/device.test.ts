import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import { currentEngine, startEngine } from '../engine/index.ts';
import { currentDevice, host, onDevice, useDevice } from './device.ts';
import { dtypes } from './dtype.ts';
import { Generator, manualSeed, noGrad, ops, scoped, Tensor } from './index.ts';

before(() => startEngine());

describe('the device of new tensors', () => {
  test('is that of every factory, until the end of the block', () => {
    assert.equal(currentDevice(), host);
    const made = onDevice('meta', () => {
      using generator = new Generator(3);
      return [
        Tensor.empty([2]),
        Tensor.from([1, 2]),
        ops.zeros([2]),
        ops.ones([2]),
        ops.full([2], 1),
        ops.arange(0, 2),
        ops.randn([2], { generator }),
        ops.rand([2], { generator }),
      ];
    });
    assert.deepEqual(
      made.map(({ device }) => device),
      made.map(() => 'meta'),
    );
    assert.equal(currentDevice(), host);
    assert.equal(made.length, 8);
  });

  test('ends where the block throws', () => {
    assert.throws(() => onDevice('meta', () => assert.fail('stop')), /stop/);
    assert.equal(currentDevice(), host);
  });

  test('is not that of tensors made from others, nor of a call that names one', () => {
    using _ = useDevice('meta');
    const onHost = ops.zeros([2], { device: host });
    assert.equal(ops.zerosLike(onHost).device, host);
    assert.equal(ops.add(onHost, onHost).device, host);
    assert.equal(ops.toCopy(onHost, { dtype: 'int64' }).device, host);
    assert.equal(ops.toCopy(onHost, { device: 'meta' }).device, 'meta');
    assert.equal(Tensor.empty([1], 'float32', host).device, host);
    assert.equal(Tensor.staging([1], 'uint8').device, host);
  });

  test('has to exist', () => {
    assert.throws(() => useDevice('gpu'), /gpu/);
    assert.equal(currentDevice(), host);
  });
});

test('to() returns the same memory on the same device, and passes gradients back', () => {
  const x = ops.ones([2]);
  x.requiresGrad = true;
  const same = x.to(host);
  noGrad(() => ops.fill_(same, 3));
  assert.deepEqual([...(x.data() as Float32Array)], [3, 3]);
  ops.sum(x.to(host)).backward();
  assert.deepEqual([...(x.grad!.data() as Float32Array)], [1, 1]);
  assert.equal(x.to('meta').device, 'meta');
});

test('tensors of several devices are one clear error, except for a single number', () => {
  const a = ops.ones([2, 2]);
  const b = onDevice('meta', () => ops.ones([2, 2]));
  const several = /its tensors are on several devices: self on meta and \w+ on cpu; move one of them with \.to\(\)/;
  assert.throws(() => ops.mm(b, a), several);
  assert.throws(() => ops.add(b, a), several);
  assert.throws(() => ops.cat([b, a]), /several devices: tensors on meta and tensors on cpu/);
  assert.equal(ops.mul(b, ops.full([], 2)).device, 'meta');
});

test('what has no numbers cannot be read', () => {
  const x = onDevice('meta', () => ops.ones([1]));
  assert.throws(() => x.data(), /meta/);
  assert.throws(() => x.item(), /meta/);
  assert.throws(() => x.memory(), /contiguous tensor on the CPU can be viewed, and this one is on meta/);
});

test('a seeded generator gives the same numbers wherever they are wanted', () => {
  const draw = () => {
    using generator = new Generator(7);
    return [ops.randn([3], { generator }), ops.uniform_(ops.zeros([2]), 0, 1, { generator })];
  };
  const [expected, , after] = [...draw(), ...draw()];
  assert.deepEqual(after!.data(), expected!.data());
  // As far as that shows without a second device that has numbers: the generator has moved on by as many.
  using generator = new Generator(7);
  onDevice('meta', () => ops.randn([3], { generator }));
  const next = ops.uniform_(ops.zeros([2]), 0, 1, { generator });
  assert.deepEqual(next.data(), draw()[1]!.data());
});

test('random numbers without a generator come from that of the device', () => {
  manualSeed(5);
  const first = ops.bernoulli_(ops.zeros([64]), 0.5).data();
  manualSeed(5);
  assert.equal(onDevice('meta', () => ops.bernoulli_(ops.zeros([64]), 0.5)).device, 'meta');
  assert.deepEqual(ops.bernoulli_(ops.zeros([64]), 0.5).data(), first);
});

test('write and fillBytes fill a tensor', () => {
  const x = ops.zeros([2]);
  x.write(Float32Array.of(1, 2));
  assert.deepEqual([...(x.data() as Float32Array)], [1, 2]);
  x.fillBytes((bytes) => new Float32Array(bytes.buffer, bytes.byteOffset, 2).set([3, 4]));
  assert.deepEqual([...(x.data() as Float32Array)], [3, 4]);
  let given = 0;
  onDevice('meta', () => ops.zeros([2, 3], { dtype: 'int64' })).fillBytes((bytes) => {
    given = bytes.length;
  });
  assert.equal(given, 6 * dtypes.int64.bytes);
});

test('every read and every write is counted', () => {
  const { native } = currentEngine();
  const counted = (act: () => unknown) => {
    const before = native.transfers();
    scoped(() => {
      act();
      return undefined;
    });
    const after = native.transfers();
    return [after.toDevice - before.toDevice, after.toHost - before.toHost];
  };
  const meta = ops.zeros([2], { device: 'meta' });
  assert.deepEqual(
    counted(() => Tensor.from([1, 2])),
    [1, 0],
  );
  assert.deepEqual(
    counted(() => ops.zeros([]).item()),
    [0, 1],
  );
  assert.deepEqual(
    counted(() => ops.zeros([2]).data()),
    [0, 1],
  );
  assert.deepEqual(
    counted(() => ops.zeros([2]).to('meta')),
    [1, 0],
  );
  assert.deepEqual(
    counted(() => ops.toCopy(ops.zeros([2]), { device: 'meta' })),
    [1, 0],
  );
  assert.deepEqual(
    counted(() => ops.copy_(meta, ops.zeros([2]))),
    [1, 0],
  );
  assert.deepEqual(
    counted(() => ops.add(ops.zeros([2]), ops.ones([2]))),
    [0, 0],
  );
});

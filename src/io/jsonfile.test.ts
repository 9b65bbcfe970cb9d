import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { randomFrom, temporary } from '../../test/samples/io.ts';
import { GraftError } from '../base/index.ts';
import { parseJson, readJson, readJsonObject } from './index.ts';

describe('parseJson', () => {
  it('says line and column of what is wrong', () => {
    const cases: [string, RegExp][] = [
      ['', /^f:1:1: The JSON ends before it is complete/],
      ['{\n  "a": 1,\n  "b" 2\n}', /^f:3:7: Expected a colon after the key "b"/],
      ['{\n  "a": 1,\n}', /^f:3:1: Expected a key in double quotes after the comma/],
      ['{a: 1}', /^f:1:2: Expected a key in double quotes/],
      ['[1, 2', /^f:1:6: The JSON ends/],
      ['[1 2]', /^f:1:4: Expected a comma or the closing \], found "2"/],
      ['{"a": tru}', /^f:1:7: Expected a value, found "t"/],
      ['[01]', /^f:1:3: Expected a comma/],
      ['["\n"]', /^f:1:2: This string does not end/],
      ['["\\x"]', /^f:1:2: This string/],
      ['{} {}', /^f:1:4: Unexpected text after the end/],
      ['[1,]', /^f:1:4: Expected a value/],
    ];
    for (const [text, message] of cases)
      assert.throws(
        () => parseJson(text, 'f'),
        (error) => error instanceof GraftError && error.kind === 'input' && message.test(error.message),
        text,
      );
  });

  it('refuses a key twice only where asked', () => {
    assert.deepEqual(parseJson('{"a": 1, "a": 2}', 'f'), { a: 2 });
    assert.throws(
      () => parseJson('{"b": [{"a": 1, "\\u0061": 2}]}', 'f', { unique: true }),
      /^GraftError: f:1:17: The key "a"/,
    );
    assert.deepEqual(parseJson('[{"a": 1}, {"a": 2}]', 'f', { unique: true }), [{ a: 1 }, { a: 2 }]);
  });

  it('agrees with JSON.parse about what is JSON, and takes any depth', () => {
    const random = randomFrom(7);
    const seed = '{"a":[1,-0.5e+3,true,false,null,"x\\n\\u00e9"],"b":{"":{}},"c":[]}';
    const alphabet = '{}[],:"\\\n 0-.eEtn';
    let both = 0;
    for (let i = 0; i < 20_000; i++) {
      let text = seed;
      for (let n = Math.floor(random() * 3); n >= 0; n--) {
        const at = Math.floor(random() * text.length);
        const put = random() < 0.3 ? '' : alphabet[Math.floor(random() * alphabet.length)]!;
        text = text.slice(0, at) + put + text.slice(at + Math.floor(random() * 2));
      }
      const accepts = (parse: () => unknown) => {
        try {
          parse();
          return true;
        } catch (error) {
          if (error instanceof GraftError) assert.doesNotMatch(error.message, /This is not valid JSON/); // a place was found
          return false;
        }
      };
      const [ours, theirs] = [accepts(() => parseJson(text, 'f', { unique: true })), accepts(() => JSON.parse(text))];
      if (ours !== theirs) assert.throws(() => parseJson(text, 'f', { unique: true }), /a second time/, text);
      both += Number(ours && theirs);
    }
    assert(both > 500, `${both} stayed JSON`);
    const deep = '['.repeat(200_000);
    assert.throws(() => parseJson(deep, 'f'), /f:1:200001: The JSON ends/);
  });
});

describe('readJson', () => {
  it('reads a file, with or without a byte order mark', () => {
    using dir = temporary();
    assert.deepEqual(readJson(dir.put('a.json', '\uFEFF{"a": [1]}')), { a: [1] });
    assert.throws(() => readJson(`${dir.path}/none.json`), /none\.json: There is no such file/);
    assert.throws(() => readJson(dir.path), /This is a directory/);
    assert.throws(() => readJsonObject(dir.put('b.json', '[]')), /b\.json: The file holds JSON, but not an object/);
  });
});

/** Reads structs of Thrift's compact protocol (thrift-compact-protocol.md of apache/thrift), for the numbers in them. */

/** Fields by their number: integers and booleans, structs, and undefined for texts, lists and fractions, which are passed over. */
export interface ThriftStruct {
  readonly [field: number]: number | bigint | boolean | ThriftStruct | undefined;
}

const types = {
  stop: 0,
  true: 1,
  false: 2,
  byte: 3,
  int16: 4,
  int32: 5,
  int64: 6,
  double: 7,
  binary: 8,
  list: 9,
  struct: 12,
};

export class Thrift {
  readonly #view: DataView;
  at = 0;

  constructor(view: DataView) {
    this.#view = view;
  }

  /** @throws Error for a list or text that is longer than what is left, RangeError where the bytes end */
  struct(): ThriftStruct {
    const fields: { [field: number]: ThriftStruct[number] } = {};
    for (let field = 0; ; ) {
      const head = this.#byte();
      const type = head & 15;
      if (type === types.stop) return fields;
      field = head >> 4 ? field + (head >> 4) : Number(this.#integer());
      fields[field] = this.#value(type);
    }
  }

  #value(type: number): ThriftStruct[number] {
    switch (type) {
      case types.true:
        return true;
      case types.false:
        return false;
      case types.byte:
        return this.#byte();
      case types.int16:
      case types.int32:
      case types.int64:
        return this.#integer();
      case types.double:
        this.at += 8;
        return undefined;
      case types.binary: {
        const length = this.#length(); // which moves on itself
        this.at += length;
        return undefined;
      }
      case types.list: {
        const head = this.#byte();
        const isBoolean = (head & 15) <= types.false;
        const length = head >> 4 < 15 ? head >> 4 : this.#length();
        for (let i = 0; i < length; i++) this.#value(isBoolean ? types.byte : head & 15);
        return undefined;
      }
      case types.struct:
        return this.struct();
      default:
        throw new Error(`a field has the unknown type ${type}`);
    }
  }

  #byte(): number {
    return this.#view.getUint8(this.at++);
  }

  /** A number of entries or bytes, each of which takes a byte or more. */
  #length(): number {
    const length = Number(this.#varInt());
    const left = this.#view.byteLength - this.at;
    if (length > left) throw new Error(`${length} entries or bytes are stated where ${left} bytes are left`);
    return length;
  }

  #integer(): number | bigint {
    const value = this.#varInt();
    const integer = (value >> 1n) ^ -(value & 1n);
    return Number.isSafeInteger(Number(integer)) ? Number(integer) : integer;
  }

  #varInt(): bigint {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = this.#byte();
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
      if (shift > 63n) throw new Error('an integer has more than 64 bits');
    }
  }
}

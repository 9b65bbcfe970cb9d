"""Writes quant/gguf.json: blocks that llama.cpp's quantiser makes of numbers that a test can make again.

--ggml FILE (repeatable): shared libraries with `ggml_quantize_chunk`, which is called without an importance matrix, as `llama-quantize`
  does. The first is libggml-base.so in the npm package @node-llama-cpp/linux-x64 3.22.1 (llama.cpp v0.5.0); all must give the same bytes.
  The committed file was also compared with a build of ggml from the sources in the PyPI package llama_cpp_python 0.3.36 (gcc 12, -O3).
  ggml builds these functions for baseline x86-64, so products are rounded before they are added. A build with FMA (-mfma, where gcc
  contracts) differs in blocks of Q4_K, Q5_K and Q6_K.

Numbers: `uniform(seed, i)` is a 24-bit hash of the element's number in the matrix; `kinds` are formulas of it, in float64, rounded once.
test/parity/quantisers.test.ts has both in TypeScript.
cases: kind, seed, rows, width; blocks.TYPE: SHA-256 of the blocks; first.TYPE, of the
first seed of a kind: the first block as hexadecimal digits.
"""
import ctypes
import hashlib

import numpy as np

from common import arguments, provenance, save_records

TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


def uniform(seed, i):
    h = (i.astype(np.uint64) + seed * 0x9E3779B9) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = ((h ^ (h >> np.uint64(shift))) * np.uint64(factor)) & 0xFFFFFFFF
    return (h >> np.uint64(8)).astype(np.float64) / 2**24


def bell(seed, i):
    """Nearly normal with a deviation of 1: the sum of six uniform numbers less 3, times the square root of 2."""
    return sum(uniform(seed + 101 * k, i) for k in range(6)) * 1.4142135623730951 - 4.242640687119286


KINDS = {
    "normal": lambda s, i: bell(s, i) * 0.05,
    "spread": lambda s, i: bell(s, i) * 2.0 ** (np.floor(uniform(s + 7, i) * 14) - 10),
    "ties": lambda s, i: (np.floor(uniform(s, i) * 65) - 32) / 4,
    "few": lambda s, i: np.floor(uniform(s, i) * 3) - 1,
    "flat": lambda s, i: bell(s, np.floor(i / 32)),
    "flat halves": lambda s, i: bell(s, np.floor(i / 16)) * 1e-3,
    "zeros": lambda s, i: 0.0 * (uniform(s, i) - 0.5),
    "positive": lambda s, i: np.abs(bell(s, i)) + 0.25,
    "negative": lambda s, i: -np.abs(bell(s, i)) - 0.25,
    "outlier": lambda s, i: bell(s, i) * 0.02 * np.where(np.floor(i / 32) * 32 + np.floor(uniform(s + 7, np.floor(i / 32)) * 32) == i, 1000, 1),
    "sparse": lambda s, i: np.where(uniform(s + 7, i) < 0.97, 0, bell(s, i)),
    "blocks of sizes": lambda s, i: bell(s, i) * 2.0 ** (np.floor(uniform(s + 7, np.floor(i / 16)) * 24) - 20),
    "close": lambda s, i: 1 + np.floor(uniform(s, i) * 5) * 2.0**-23,
    "large": lambda s, i: bell(s, i) * 1e4,
    "half subnormal": lambda s, i: bell(s, i) * 2.0**-18,
    "tiny": lambda s, i: bell(s, i) * 2e-15,
    "smallest normal": lambda s, i: bell(s, i) * 2.0**-126,
    "subnormal": lambda s, i: bell(s, i) * 2.0**-140,
    "last bits": lambda s, i: np.floor(uniform(s, i) * 5 - 2) * 2.0**-149,
}


def library(path):
    lib = ctypes.CDLL(path)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + 3 * [ctypes.c_int64] + [ctypes.c_void_p]
    return lib


def quantised(lib, name, x):
    elements = 256 if name.endswith("K") else 32
    out = np.zeros((x.shape[0], x.shape[1] // elements * BYTES[name]), np.uint8)
    assert lib.ggml_quantize_chunk(TYPES[name], x.ctypes.data, out.ctypes.data, 0, *x.shape, None) == out.size
    return out


def main():
    options = arguments(__doc__, ggml={"action": "append", "required": True, "metavar": "FILE"})
    libs, cases = [library(path) for path in options.ggml], []
    for kind, numbers in KINDS.items():
        shapes = [(1, 64, 1024), (2, 96, 768), (3, 64, 1280), (4, 300, 256), (5, 128, 2048)] if kind in ("normal", "spread", "blocks of sizes") else [(11, 24, 768), (12, 32, 512)]
        for seed, rows, width in shapes:
            with np.errstate(under="ignore"):
                x = np.ascontiguousarray(numbers(seed, np.arange(rows * width)).astype(np.float32).reshape(rows, width))
            case = {"kind": kind, "seed": seed, "rows": rows, "width": width, "input": hashlib.sha256(x.tobytes()).hexdigest()[:16]}
            for name in TYPES:
                blocks, *others = [quantised(lib, name, x) for lib in libs]
                for other in others:
                    assert np.array_equal(blocks, other), (kind, seed, name, "libraries differ", np.count_nonzero((blocks != other).reshape(-1, BYTES[name]).any(1)))
                case[f"blocks.{name}"] = hashlib.sha256(blocks.tobytes()).hexdigest()[:32]
                if seed in (1, 11):
                    case[f"first.{name}"] = blocks.reshape(-1)[: BYTES[name]].tobytes().hex()
            cases.append(case)
    head = {"provenance": provenance(__file__, [1, 2, 3, 4, 5, 11, 12], "exact", packages=["numpy"], ggml="node-llama-cpp 3.22.1 (llama.cpp v0.5.0), linux-x64; llama_cpp_python 0.3.36")}
    save_records(options.out / "quant" / "gguf.json", head, cases)
    print(len(cases), "cases,", sum(c["rows"] * c["width"] for c in cases), "numbers")


if __name__ == "__main__":
    main()

"""Writes quant/gguf.json: blocks that llama.cpp's quantiser makes of numbers that a test can make again.

--ggml FILE (repeatable): shared libraries with `ggml_quantize_chunk`, which is called without an importance matrix, as `llama-quantize`
  does. The first is libggml-base.so in the npm package @node-llama-cpp/linux-x64 3.22.1 (llama.cpp v0.5.0); all must give the same bytes.
  The committed file was also compared with a build of ggml from the sources in the PyPI package llama_cpp_python 0.3.36 (gcc 12, -O3).
  ggml builds these functions for baseline x86-64, so products are rounded before they are added. A build with FMA (-mfma, where gcc
  contracts) differs in blocks of Q4_K, Q5_K and Q6_K.

cases: matrices of quant_numbers.py (kind, seed, rows, width); blocks.TYPE: SHA-256 of the blocks; first.TYPE, of the
first seed of a kind: the first block as hexadecimal digits; inputs.Q8_K: SHA-256 of the float32 values of `quantize_row_q8_K_ref`, to
which the inputs of the K formats are rounded (zeros as +0), where no block is so small that its inverse scale is infinite.
"""
import ctypes
import hashlib

import numpy as np

from common import arguments, provenance, save_records
from quant_numbers import KINDS, matrix

TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


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


def rounded_inputs(lib, x):
    bytes_of_block = 4 + 256 + 2 * 16  # float32 scale, codes, sums
    blocks, values = np.zeros(x.size // 256 * bytes_of_block, np.uint8), np.empty_like(x)
    for call, source, to in ((lib.quantize_row_q8_K_ref, x, blocks), (lib.dequantize_row_q8_K, blocks, values)):
        call.argtypes, call.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
        call(source.ctypes.data, to.ctypes.data, x.size)
    return values + np.float32(0)


def main():
    options = arguments(__doc__, ggml={"action": "append", "required": True, "metavar": "FILE"})
    libs, cases = [library(path) for path in options.ggml], []
    for kind in KINDS:
        shapes = [(1, 64, 1024), (2, 96, 768), (3, 64, 1280), (4, 300, 256), (5, 128, 2048)] if kind in ("normal", "spread", "blocks of sizes") else [(11, 24, 768), (12, 32, 512)]
        for seed, rows, width in shapes:
            x = matrix(kind, seed, rows, width)
            case = {"kind": kind, "seed": seed, "rows": rows, "width": width, "input": hashlib.sha256(x.tobytes()).hexdigest()[:16]}
            for name in TYPES:
                blocks, *others = [quantised(lib, name, x) for lib in libs]
                for other in others:
                    assert np.array_equal(blocks, other), (kind, seed, name, "libraries differ", np.count_nonzero((blocks != other).reshape(-1, BYTES[name]).any(1)))
                case[f"blocks.{name}"] = hashlib.sha256(blocks.tobytes()).hexdigest()[:32]
                if seed in (1, 11):
                    case[f"first.{name}"] = blocks.reshape(-1)[: BYTES[name]].tobytes().hex()
            peaks = np.abs(x).reshape(-1, 256).max(1)
            if not ((peaks > 0) & (peaks < 2.0**-119)).any():
                case["inputs.Q8_K"] = hashlib.sha256(rounded_inputs(libs[0], x).tobytes()).hexdigest()[:32]
            cases.append(case)
    head = {"provenance": provenance(__file__, [1, 2, 3, 4, 5, 11, 12], "exact", packages=["numpy"], ggml="node-llama-cpp 3.22.1 (llama.cpp v0.5.0), linux-x64; llama_cpp_python 0.3.36")}
    save_records(options.out / "quant" / "gguf.json", head, cases)
    print(len(cases), "cases,", sum(c["rows"] * c["width"] for c in cases), "numbers")


if __name__ == "__main__":
    main()

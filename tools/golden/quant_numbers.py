"""Numbers for the goldens of quantisers that a test can make again: test/parity/quant-numbers.ts has the same formulas. Writes no files.

`uniform(seed, i)` is a 24-bit hash of i, the number of an element in its matrix. KINDS are formulas of it in float64, rounded once.
"""
import numpy as np


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


def matrix(kind, seed, rows, width):
    with np.errstate(under="ignore"):
        return np.ascontiguousarray(KINDS[kind](seed, np.arange(rows * width)).astype(np.float32).reshape(rows, width))

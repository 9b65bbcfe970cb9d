"""Writes quant/torchao.json: torchao's fake quantisers of integers on numbers that a test can make again (quant_numbers.py).

constant: 2 to 8 bits, groups and whole rows (`group` 0), float32 and bfloat16:
  symmetric    IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.intB, group_size=G or "per_channel"))
  asymmetric   choose_qparams_affine(ASYMMETRIC) and _fake_quantize_affine, with which IntxWeightOnlyConfig converts (checked here);
               with `group` 0 and 8 bits also what IntxFakeQuantizer "per_token" gives (checked here). The asymmetric *group* path of
               IntxFakeQuantizer is another rule: its zero point is a float cut to an integer; it does not give what convert gives.
  values, scales, zero_points: SHA-256 of float32 (values of bfloat16: of bfloat16), float32, int8;  passed: SHA-256 of one byte for each
  element, 1 where torchao's gradient is not zero;  gradient_error: max |gradient - passed * given| / max |given| of torchao's gradient
learned: symmetric, IntxFakeQuantizer with range_learning, scales moved off their rule by `factor` [rows, groups]: also dscale [rows, groups]
linear: FakeQuantizedLinear, int8 per token and int4 in groups of 32 (8da4w): output, gradients of x and of the weight
embedding: FakeQuantizedEmbedding, int4 in groups of 32: SHA-256 of the rows of `ids`
"""
import hashlib

import numpy as np
import torch
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.qat import FakeQuantizedEmbedding, FakeQuantizedLinear, IntxFakeQuantizeConfig
from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer
from torchao.quantization.quant_primitives import MappingType, _fake_quantize_affine, choose_qparams_affine

from common import arguments, provenance, save_records
from quant_numbers import matrix

DTYPES = [getattr(torch, f"int{b}") for b in range(9) if b > 1]
KINDS = ["normal", "spread", "ties", "few", "flat", "zeros", "positive", "negative", "outlier", "sparse", "close", "large", "tiny", "smallest normal", "subnormal", "last bits"]


def sha(t):
    t = t.detach().contiguous()
    return hashlib.sha256((t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy().tobytes()).hexdigest()[:24]


def numbers(t):
    return [float(f"{x:.9g}") for x in t.detach().flatten().tolist()]


def given(shape, seed=99):
    return torch.from_numpy(np.abs(matrix("normal", seed, *shape)) + 0.001)


def symmetric(w, bits, group):
    q = IntxFakeQuantizer(IntxFakeQuantizeConfig(DTYPES[bits - 2], **({"group_size": group} if group else {"granularity": "per_channel"})))
    return q(w), q.scale, q.zero_point


def asymmetric(w, bits, group):
    low, high, block = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, (1, group or w.shape[1])
    scale, zero = choose_qparams_affine(w, MappingType.ASYMMETRIC, block, torch.int8, low, high, scale_dtype=torch.float32)
    values = _fake_quantize_affine(w, block, scale, zero, torch.int32, low, high)
    if group == 0 and bits == 8:
        per_token = IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False))
        assert torch.equal(per_token(w), values)
    if w.dtype == torch.float32:
        linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
        linear.weight.data.copy_(w)
        quantize_(linear, IntxWeightOnlyConfig(weight_dtype=DTYPES[bits - 2], granularity=PerGroup(group) if group else PerAxis(0), mapping_type=MappingType.ASYMMETRIC))
        assert torch.equal(linear.weight.dequantize(), values)
    return values, scale, zero


def case(kind, seed, rows, width, bits, group, mapping, dtype):
    w = torch.from_numpy(matrix(kind, seed, rows, width)).to(dtype).requires_grad_()
    values, scale, zero = (symmetric if mapping == "symmetric" else asymmetric)(w, bits, group)
    dy = given((rows, width)).to(dtype)
    values.backward(dy)
    passed = w.grad != 0
    error = ((w.grad.double() - passed * dy.double()).abs().max() / dy.double().abs().max()).item()
    assert error <= (1e-6 if dtype == torch.float32 else 1e-2), error
    groups = width // (group or width)
    return {"what": "constant", "kind": kind, "seed": seed, "rows": rows, "width": width, "bits": bits, "group": group, "symmetric": mapping == "symmetric", "dtype": str(dtype)[6:], "values": sha(values),
            "scales": sha(scale.reshape(rows, groups)), "zero_points": sha(zero.reshape(rows, groups).to(torch.int8)), "passed": sha(passed.to(torch.uint8)), "gradient_error": float(f"{error:.3g}")}


def learned(bits, group, seed=31, rows=6, width=128):
    w = torch.from_numpy(matrix("normal", seed, rows, width)).requires_grad_()
    q = IntxFakeQuantizer(IntxFakeQuantizeConfig(DTYPES[bits - 2], is_dynamic=False, range_learning=True, **({"group_size": group} if group else {"granularity": "per_channel"})))
    q._initialized = True
    q(w)
    factor = torch.from_numpy(matrix("positive", seed + 1, *q.scale.shape)) / 2
    q.scale.data.mul_(factor)
    values = q(w)
    values.backward(given((rows, width)))
    return {"what": "learned", "bits": bits, "group": group, "seed": seed, "rows": rows, "width": width, "scales": sha(q.scale), "values": sha(values), "passed": sha((w.grad != 0).to(torch.uint8)), "dscale": numbers(q.scale.grad)}


def linear():
    layer = FakeQuantizedLinear(128, 16, False, IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False), IntxFakeQuantizeConfig(torch.int4, group_size=32))
    layer.weight.data.copy_(torch.from_numpy(matrix("normal", 41, 16, 128)))
    x = torch.from_numpy(matrix("spread", 42, 5, 128)).requires_grad_()
    out = layer(x)
    out.backward(given((5, 16)))
    return {"what": "linear", "out": numbers(out), "dx": numbers(x.grad), "dweight": numbers(layer.weight.grad)}


def embedding():
    table = FakeQuantizedEmbedding(20, 96, weight_config=IntxFakeQuantizeConfig(torch.int4, group_size=32))
    table.weight.data.copy_(torch.from_numpy(matrix("normal", 43, 20, 96)))
    ids = [3, 0, 19, 3, 7]
    return {"what": "embedding", "ids": ids, "rows": sha(table(torch.tensor(ids)))}


def main():
    out, cases = arguments(__doc__).out, []
    for mapping in ("symmetric", "asymmetric"):
        for bits in range(2, 9):
            for group in (32, 64, 128, 0):
                cases.append(case("normal", 21, 12, 384, bits, group, mapping, torch.float32))
            for group in (6, 18, 45, 0):
                cases.append(case("spread", 22, 7, 90, bits, group, mapping, torch.float32))
            for group in (32, 0):
                cases.append(case("normal", 23, 9, 192, bits, group, mapping, torch.bfloat16))
        for kind in KINDS:
            for bits in (3, 4, 8):
                cases.append(case(kind, 24, 6, 256, bits, 32, mapping, torch.float32))
    cases += [learned(bits, group) for bits in (2, 3, 4, 8) for group in (32, 0)] + [linear(), embedding()]
    head = {"provenance": provenance(__file__, "in each case", {"values": "exact", "gradients": 1e-6}, packages=["torch", "torchao", "numpy"])}
    save_records(out / "quant" / "torchao.json", head, cases)
    print(len(cases), "cases")


if __name__ == "__main__":
    main()

"""Writes quant/bitsandbytes.safetensors: 4-bit NormalFloat and 8-bit rows by bitsandbytes on a CPU, and LoftQ on top (needs bitsandbytes).

  weight.NAME [O,I] F32          the matrices: `normal`; `edges`: a block of zeros, one outlier, values exactly between two codes
  nf4.NAME.codes [O*I/2] U8      two codes in each byte, the first in the high nibble; blocks of 64 along the rows; exactly between
                                 two codes the lower one is chosen, a block of zeros has code 7
  nf4.NAME.absmax [O*I/64]       largest magnitude of a block
  nf4.NAME.values [O,I]          dequantised: table[code] * absmax
  nf4.table [16]
  nested.NAME.*                  double quantisation: absmax [blocks] U8, table [256], absmax2 [blocks/256], offset [] and values [O,I];
                                 absmax = table[U8] * absmax2 + offset
  checkpoint.NAME.KEY            `normal`, nested, as transformers writes a bitsandbytes checkpoint: KEY is the suffix of the weight's name
  int8.NAME.codes [O,I] I8, int8.NAME.scale [O]   rows: code = round(127 x / scale) of the weight in half precision
  loftq.K.A [R,I], loftq.K.B [O,R], loftq.K.values [O,I], loftq.K.error []   LoftQ of `normal` with rank 4 and K alternations, as
                                 PEFT's loftq_init: nf4(W - B A) and the SVD of the rest, B A last; error = |W - values - B A|;
                                 B = U sqrt(S), A = sqrt(S) V: only the product is unique
All float32, as the library computes. Rows are whole blocks: bitsandbytes 0.50.2 dequantises others wrongly on a CPU.
"""
import os

os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
from common import arguments, provenance, save_tensors

import bitsandbytes.functional as F
import torch
from peft.utils.loftq_utils import _low_rank_decomposition

SEED, RANK = 1700, 4
PACKAGES = ["torch", "peft", "bitsandbytes", "safetensors"]


def matrices():
    g = torch.Generator().manual_seed(SEED)
    table = F.get_4bit_type("nf4", device="cpu")
    edges = torch.randn(12, 64, generator=g) * 0.02
    flat = edges.view(-1)
    flat[:64] = 0
    flat[64 + 17] = 5.0
    flat[128:143] = (table[1:] + table[:-1]) / 2
    flat[143] = 1.0
    flat[192:208] = -table
    return {"normal": torch.randn(48, 128, generator=g) * 0.1, "edges": edges}


def nf4(w, nested=False):
    codes, state = F.quantize_4bit(w, quant_type="nf4", blocksize=64, compress_statistics=nested)
    return codes, state, F.dequantize_4bit(codes, state)


def loftq(w, steps):
    """Runs PEFT's loop; PEFT's own function requires an accelerator."""
    rest = w.clone()
    for i in range(steps):
        values = nf4(rest)[2]
        d = _low_rank_decomposition(w - values, reduced_rank=RANK)
        rest = w - d["L"] @ d["R"]
    return d["R"], d["L"], values


def main():
    out = arguments(__doc__).out
    tensors = {}
    for name, w in matrices().items():
        codes, state, values = nf4(w)
        got = torch.stack([codes.view(-1) >> 4, codes.view(-1) & 15], -1).view(-1, 64).long()
        x = w.view(-1, 64) / state.absmax[:, None].clamp_min(1e-30)
        near = (x[..., None] - state.code).abs()
        assert (near.gather(-1, got[..., None])[..., 0] <= near.min(-1).values + 1e-6).all() and (name != "edges" or got[2, :15].tolist() == list(range(15)) and (got[0] == 7).all())
        assert torch.equal(values.view(-1, 64), (state.code[torch.stack([codes.view(-1) >> 4, codes.view(-1) & 15], -1).long()]).view(-1, 64) * state.absmax[:, None])
        tensors |= {f"weight.{name}": w, f"nf4.{name}.codes": codes.view(-1), f"nf4.{name}.absmax": state.absmax, f"nf4.{name}.values": values, "nf4.table": state.code}
        codes2, s, values2 = nf4(w, nested=True)
        assert torch.equal(codes2, codes)
        absmax = s.state2.code[s.absmax.long()] * s.state2.absmax.repeat_interleave(256)[: len(s.absmax)] + s.offset
        assert torch.allclose(values2.view(-1, 64), values.view(-1, 64) / state.absmax.clamp_min(1e-30)[:, None] * absmax[:, None], atol=1e-6)
        tensors |= {f"nested.{name}.absmax": s.absmax, f"nested.{name}.table": s.state2.code, f"nested.{name}.absmax2": s.state2.absmax, f"nested.{name}.offset": s.offset,
                    f"nested.{name}.values": values2}
        if name == "normal":
            tensors |= {f"checkpoint.{name}.{k}": v for k, v in s.as_dict(packed=True).items()} | {f"checkpoint.{name}.": codes2}
        rows, scale, _ = F.int8_vectorwise_quant(w.half())
        tensors |= {f"int8.{name}.codes": rows, f"int8.{name}.scale": scale}
        print(name, "nf4 error", (values - w).abs().max().item(), "nested", (values2 - w).abs().max().item(), "int8", (rows * scale[:, None] / 127 - w).abs().max().item())
    w = tensors["weight.normal"]
    for steps in (1, 3):
        a, b, values = loftq(w, steps)
        error = (w - values - b @ a).norm()
        tensors |= {f"loftq.{steps}.A": a, f"loftq.{steps}.B": b, f"loftq.{steps}.values": values, f"loftq.{steps}.error": error}
        print("loftq", steps, "error", error.item(), "without", (w - nf4(w)[2]).norm().item())
    save_tensors(out / "quant" / "bitsandbytes.safetensors", tensors, provenance(__file__, SEED, {"codes": "exact", "values": 1e-6, "loftq": 1e-5}, packages=PACKAGES,
                 measure="max|a-b|/max|b| of each tensor"))
    print({k: tuple(v.shape) for k, v in tensors.items() if "checkpoint" in k})


if __name__ == "__main__":
    main()

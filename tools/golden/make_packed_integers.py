"""Writes quant/packed-integers.safetensors: weights in compressed-tensors' layout `pack-quantized`, by its own compressor.

For 2 to 8 bits, symmetric and asymmetric in groups of 32, symmetric by row (NAME = intB.symmetric.32, intB.asymmetric.32, intB.symmetric.0):
  NAME.weight_packed, .weight_scale, .weight_shape and, asymmetric, .weight_zero_point: what the compressor writes for random numbers [9, 64]
  values.NAME: what it reads back, float32, exact
"""
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from common import PACKAGES, arguments, provenance, save_tensors

ROWS, WIDTH, SEED = 9, 64, 811


def main():
    out = arguments(__doc__).out
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for bits in range(2, 9):
        for symmetric, group in ((True, 32), (False, 32), (True, 0)):
            kind = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
            scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **kind))
            groups = WIDTH // (group or WIDTH)
            weight = torch.randn(ROWS, WIDTH, generator=generator)
            scale = weight.view(ROWS, groups, -1).abs().amax(2) / (2 ** bits / 2 - 0.5)
            low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            zero = torch.zeros(ROWS, groups, dtype=torch.int8)
            if not symmetric:
                zero = torch.randint(low, high + 1, (ROWS, groups), generator=generator).to(torch.int8)
            state = PackedQuantizationCompressor.compress({"weight": weight, "weight_scale": scale, "weight_zero_point": zero}, scheme)
            values = PackedQuantizationCompressor.decompress(state, scheme)["weight"]
            assert values.dtype == torch.float32
            name = f"int{bits}.{'symmetric' if symmetric else 'asymmetric'}.{group}"
            tensors |= {f"{name}.{key}": value for key, value in state.items()} | {f"values.{name}": values}
    save_tensors(out / "quant" / "packed-integers.safetensors", tensors, provenance(__file__, SEED, "exact, bit for bit", [*PACKAGES, "compressed-tensors"]))
    print(len(tensors), "tensors")


if __name__ == "__main__":
    main()

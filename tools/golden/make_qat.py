"""Writes qat/: 20 steps of quantisation-aware training on tiny llama3 and mistral (run make_models.py and make_train.py first), with
torchao's fake quantisers of integers and, for GGUF's formats, llama.cpp's quantiser in the forward pass.

  batches.jsonl     one step in each line, as in train/, for both models
  RUN.safetensors   loss [20], grad_norm [20] (global L2 norm), final.KEY: what was trained of two layers and the last norm after the last
                    step, KEY as in the checkpoint or in adapter_model.safetensors; PATH.weight_scale: learned scales
  runs.json         the settings of every run, and what a float32 run differs by when its sums are taken in another order

The settings have the names of the recipe's fields; what they mean is written here on torchao: IntxFakeQuantizer for weights and inputs,
its range_learning for learned ranges. Below `Q(w)` is the rounded weight, A(x) the rounded input or x.
  over merged   y = A(x) Q(W + s BA)^T          full: y = A(x) Q(W)^T
  over base     y = A(x) Q(W)^T + s (x A^T) B^T (torchtune's QATLoRALinear: the inputs of the adapter are not rounded)
  embedding     rows of Q(E); a head that shares the table computes with Q(E) too
  q4_0, q8_0    ggml_quantize_chunk (make_quant_gguf.py says of which file), unpacked by gguf; the gradient of Q4_0 is 0 where
                x / d + 8.5 reaches 16, beyond the largest code; Q8_0 clips nothing
  learned_range scales begin at the rule of W, the base's weight, and are trained as every parameter is
The reference is float32, on which rounding is defined. `reordered` is the largest difference of a second run whose linear layers
add in another order, which changes last bits. torchao's symmetric scale is amax / 7.5 at 4 bits: the number of
largest magnitude in every group lies exactly between two codes, so that last bits of a trained weight decide which of them it gets (-8 or
-7), and whether a gradient passes (7). torchao alone then differs from itself by up to 0.07 of a loss, and nothing can be within 1e-3 of it.
In runs with `grid` all trained numbers are therefore rounded to multiples of 1 / grid, at the start and after every step, here and in the
test: their bits are then the same, and so are 20 steps. `free` is what `reordered` is without the grid. Rounded inputs (8da4w) have such ties
by chance. AdamW's decay is of matrices only, not of norms.
"""
import contextlib
import json
import os
import re
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from peft import PeftModel
from torchao.quantization.qat import IntxFakeQuantizeConfig
from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer
from transformers import AutoModelForCausalLM

from common import PACKAGES, arguments, provenance, save_records, save_tensors, worst
from make_lora import key_of
from make_quant_gguf import library, quantised
from make_quant_torchao import asymmetric
from make_train import make_batches, pad

warnings.filterwarnings("ignore")
SEED, VOCABULARY, LR = 300, 131, 1e-3
KEPT = re.compile(r"^model\.norm|layers\.0\.(self_attn\.q|mlp\.down)_proj")
GRID = {"grid": 1024}
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
wide = {"exclude_modules": ["down_proj"]}  # of llama3, 44 wide
lora = lambda *qat, **more: {"model": "llama3", "method": "lora", "qat": list(qat), **more}
full = lambda *qat, **more: {"model": "mistral", "method": "full", "qat": list(qat), **more}
RUNS = {
    "full-int4": full({"weight": "int4", "group_size": 16}, **GRID),
    "full-int8-channel": full({"weight": "int8", "group_size": "channel"}, **GRID),
    "full-int3": full({"weight": "int3", "group_size": 16}, **GRID),
    "full-int2": full({"weight": "int2", "group_size": 16}, **GRID),
    "full-8da4w": full({"weight": "int4", "group_size": 16, "activation": "int8"}, **GRID),
    "full-int4-learned": full({"weight": "int4", "group_size": 16, "learned_range": True}),
    "full-int2-learned-channel": full({"weight": "int2", "group_size": "channel", "learned_range": True}),
    "full-embedding-head": full({"weight": "int4", "group_size": 16, "embedding": "int4", "head": "int8"}, **GRID),
    "full-int4-asymmetric": full({"weight": "int4", "group_size": 16, "symmetric": False}),
    "full-int8-asymmetric-inputs": full({"weight": "int8", "group_size": "channel", "symmetric": False, "activation": "int8"}),
    "lora-merged-int4-asymmetric": lora({"weight": "int4", "group_size": 4, "symmetric": False}, weight_decay=0.01),
    "lora-merged-int2-asymmetric": lora({"weight": "int2", "group_size": "channel", "symmetric": False}),
    "full-q4_0": full({"weight": "q4_0", **wide}, weight_decay=0.01),
    "full-tied-int8": full({"weight": "int4", "group_size": 4, "embedding": "int8"}, model="llama3", **GRID),
    "lora-merged-int4": lora({"weight": "int4", "group_size": 32, **wide}, **GRID),
    "lora-merged-int4-everywhere": lora({"weight": "int4", "group_size": 32, **wide}, {"weight": "int4", "group_size": "channel", "target_modules": ["down_proj"]}, weight_decay=0.01, **GRID),
    "lora-merged-int2": lora({"weight": "int2", "group_size": 4}, **GRID),
    "lora-merged-8da4w": lora({"weight": "int4", "group_size": 32, "activation": "int8", **wide}, **GRID),
    "lora-merged-q4_0": lora({"weight": "q4_0", **wide}),
    "lora-merged-q8_0": lora({"weight": "q8_0", **wide}),
    "lora-merged-learned": lora({"weight": "int4", "group_size": 4, "learned_range": True}),
    "lora-merged-tied-q8_0": lora({"weight": "q4_0", "embedding": "q8_0", **wide}),
    "lora-base-int4": lora({"weight": "int4", "group_size": 32, "over": "base", **wide}),
    "lora-base-8da4w": lora({"weight": "int4", "group_size": 32, "activation": "int8", "over": "base", **wide}),
    "lora-base-q4_0": lora({"weight": "q4_0", "over": "base", **wide}),
    "lora-start-step": lora({"weight": "int4", "group_size": 32, "start_step": 7, **wide}, **GRID),
}


class Blocks(torch.autograd.Function):
    """A GGUF format with a straight-through gradient."""

    @staticmethod
    def forward(ctx, w, lib, name):
        x = np.ascontiguousarray(w.detach().numpy())
        values = dequantize(quantised(lib, name, x), getattr(Type, name)).reshape(x.shape)
        passed = np.ones(x.shape, np.float32)
        if name == "Q4_0":
            blocks = x.reshape(-1, 32)
            extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
            d = extreme / np.float32(-8)
            inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
            passed = (blocks * inverse + np.float32(8.5) < 16).astype(np.float32).reshape(x.shape)
        ctx.passed = torch.from_numpy(passed)
        return torch.from_numpy(values.astype(np.float32))

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.passed, None, None


def rounding(lib, settings, weight_format, weight):
    """Returns a function that rounds a weight [out, in], and the scales that it trains."""
    if not weight_format.startswith("int"):
        return lambda w: Blocks.apply(w, lib, weight_format.upper()), None
    learned, group, bits = settings.get("learned_range", False), settings.get("group_size", 32), int(weight_format[3:])
    if not settings.get("symmetric", True):
        return lambda w: asymmetric(w, bits, 0 if group == "channel" else group)[0], None
    config = IntxFakeQuantizeConfig(getattr(torch, weight_format), is_dynamic=not learned, range_learning=learned,
                                    **({"granularity": "per_channel"} if group == "channel" else {"group_size": group}))
    quantiser = IntxFakeQuantizer(config)
    if learned:
        quantiser._initialized = True
        quantiser(weight.detach())
    return quantiser, quantiser.scale if learned else None


def round_linear(module, q, settings, is_on):
    """Replaces the forward pass of a linear layer, or of PEFT's around one."""
    per_token = IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False))
    inputs = per_token if settings.get("activation") else lambda x: x
    plain = module.forward
    adapted = hasattr(module, "lora_A")
    base = module.base_layer if adapted else module

    def forward(x):
        if not is_on():
            return plain(x)
        if not adapted:
            return F.linear(inputs(x), q(base.weight), base.bias)
        a, b, s = module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"]
        if settings.get("over") == "base":
            return F.linear(inputs(x), q(base.weight), base.bias) + s * F.linear(F.linear(x, a), b)
        return F.linear(inputs(x), q(base.weight + s * (b @ a)), base.bias)

    module.forward = forward


def prepare(model, lib, run, clock):
    """Puts the fake quantisers of a run into a model; returns the learned scales by path."""
    scales = {}
    names = dict(model.named_modules())
    path_of = lambda name: name.removeprefix("base_model.model.")
    for settings in run["qat"]:
        is_on = lambda settings=settings: clock[0] >= settings.get("start_step", 0)
        targets = [t for t in settings.get("target_modules", LAYERS) if t not in settings.get("exclude_modules", [])]
        for name, module in names.items():
            if name.split(".")[-1] not in targets:
                continue
            weight = getattr(module, "base_layer", module).weight
            q, scale = rounding(lib, settings, settings["weight"], weight)
            if scale is not None:
                scales[path_of(name)] = scale
            round_linear(module, q, settings, is_on)
        table, head = next(m for n, m in names.items() if n.endswith("embed_tokens")), next(m for n, m in names.items() if n.endswith("lm_head"))
        tied = table.weight is head.weight
        if "embedding" in settings:
            q, _ = rounding(lib, settings, settings["embedding"], table.weight)
            table.forward = lambda ids, q=q: F.embedding(ids, q(table.weight))
        output = settings.get("embedding") if tied else settings.get("head")
        if output:
            q, _ = rounding(lib, settings, output, head.weight)
            round_linear(head, q, {}, is_on)
    return scales


@contextlib.contextmanager
def halves():
    """Linear layers add the products of the second half of their inputs to those of the first: another order of sums."""
    whole = F.linear

    def linear(x, w, bias=None):
        half = w.shape[1] // 2
        return whole(x[..., half:], w[:, half:], bias) + whole(x[..., :half], w[:, :half])

    F.linear = linear
    try:
        yield
    finally:
        F.linear = whole


def train(lib, run, batches, out, grid=None):
    model = AutoModelForCausalLM.from_pretrained(run["model"], dtype=torch.float32, attn_implementation="eager")
    if run["method"] == "lora":
        model = PeftModel.from_pretrained(model, out / "train" / "start", is_trainable=True)
    clock = [0]
    scales = prepare(model, lib, run, clock)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    params = [*named.values(), *scales.values()]
    groups = [{"params": [p for p in params if (p.dim() > 1) is decays], "weight_decay": run.get("weight_decay", 0.0) if decays else 0.0} for decays in (True, False)]
    opt = torch.optim.AdamW([group for group in groups if group["params"]], lr=LR)
    losses, norms = [], []

    def snap():
        if grid:
            for p in params:
                p.data = torch.round(p.data * grid) / grid

    snap()
    for clock[0], step in enumerate(batches):
        ids, labels, mask = pad(step["rows"])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params, float("inf")).item())
        opt.step()
        snap()
        opt.zero_grad(set_to_none=True)
        losses.append(loss.item())
    final = {key_of(n): p.detach() for n, p in named.items()} | {f"{path}.weight_scale": s.detach() for path, s in scales.items()}
    final = {key: t for key, t in final.items() if KEPT.search(key)}
    return losses, norms, final


def main():
    options = arguments(__doc__, ggml={"required": True, "metavar": "FILE"})
    out, lib = options.out.resolve(), library(options.ggml)
    os.chdir(out / "models")
    batches = make_batches(VOCABULARY)
    (out / "qat").mkdir(exist_ok=True)
    (out / "qat" / "batches.jsonl").write_text("".join(json.dumps(b, separators=(",", ":")) + "\n" for b in batches))
    runs = []
    for name, settings in RUNS.items():
        run = lambda **more: train(lib, settings, batches, out, **more)
        losses, norms, final = run(grid=settings.get("grid"))
        with halves():
            other = run(grid=settings.get("grid"))
        relative = lambda a, b: float(f"{max(abs(x - y) / y for x, y in zip(a, b)):.2g}")
        reordered = {"loss": relative(other[0], losses), "grad_norm": relative(other[1], norms), "final": worst((other[2][k], final[k]) for k in final)}
        if "grid" in settings:
            with halves():
                free = run()
            reordered["free"] = relative(free[0], run()[0])
        prov = provenance(__file__, SEED, {"loss": 1e-3}, packages=[*PACKAGES, "torchao"], measure="relative", reordered=reordered)
        save_tensors(out / "qat" / f"{name}.safetensors", {"loss": torch.tensor(losses), "grad_norm": torch.tensor(norms)} | {f"final.{k}": v for k, v in final.items()}, prov)
        runs.append({"name": name, **settings, "tensors": len(final), "reordered": reordered})
        print(name, "loss", [round(x, 3) for x in losses[:: 4]], "norm", round(min(norms), 2), round(max(norms), 2), reordered)
    prov = provenance(__file__, SEED, {"loss": 1e-3}, packages=[*PACKAGES, "torchao"], ggml="node-llama-cpp 3.22.1 (llama.cpp v0.5.0), linux-x64")
    head = {"provenance": prov, "adapter": "train/start", "lr": LR, "optimizer": {"name": "AdamW", "betas": [0.9, 0.999], "eps": 1e-8}}
    save_records(out / "qat" / "runs.json", head, runs, key="runs")


if __name__ == "__main__":
    main()

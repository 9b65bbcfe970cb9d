"""Writes peft/weighted/: PEFT's add_weighted_adapter on three LoRA adapters for tiny llama3 (run make_models.py first).

  a/, b/, c/           the adapters: a r 4 alpha 8, b r 4 alpha 2 (both q_proj, v_proj), c r 6 rsLoRA (q_proj only)
  golden.safetensors   ids [T] I64; NAME.KEY: A and B of the new adapter, KEY as in an adapter file, always with scaling 1 (or sqrt(r)
                       where the first adapter is rsLoRA: `scaling` in golden.json); logits.NAME [T,V] with it attached;
                       mask.NAME.KEY.ADAPTER: 0/1 U8, the mask of DARE (KEY ends in `delta` where the product is pruned);
                       logits.both: a and b active at once, each with its own scaling
  golden.json          cases: one record each, {name, adapters, weights, combination_type, ...options, rank, scaling}
After an SVD only the product B A is unique (with svd_clamp not even that: the quantile depends on the signs, so there is no case).
"""
import json
import os
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from common import arguments, double_model, float64, provenance, random_rows, round_up, save_json, save_records, save_tensors, worst
from make_lora import fill
from make_peft import F32, load, save

BASE, SEED = "models/llama3", 1500
ADAPTERS = {"a": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]), "b": dict(r=4, lora_alpha=2, target_modules=["q_proj", "v_proj"]),
            "c": dict(r=6, lora_alpha=3, use_rslora=True, target_modules=["q_proj"])}
AB = dict(adapters=["a", "b"], weights=[0.7, -0.4])
ABC = dict(adapters=["a", "b", "c"], weights=[0.5, 0.3, -0.2])
CASES = {
    "linear": dict(**AB, combination_type="linear"),
    "cat": dict(**ABC, combination_type="cat"),
    "cat-rslora-first": dict(adapters=["c", "a"], weights=[1.0, 0.5], combination_type="cat"),
    "svd": dict(**ABC, combination_type="svd", svd_rank=5),
    "ties": dict(**AB, combination_type="ties", density=0.5),
    "ties-frequency": dict(**AB, combination_type="ties", density=0.7, majority_sign_method="frequency"),
    "ties-svd": dict(**ABC, combination_type="ties_svd", density=0.5, svd_rank=4),
    "dare-linear": dict(**AB, combination_type="dare_linear", density=0.6),
    "dare-ties": dict(**AB, combination_type="dare_ties", density=0.6),
    "dare-linear-svd": dict(**AB, combination_type="dare_linear_svd", density=0.6, svd_rank=4),
    "dare-ties-svd": dict(**AB, combination_type="dare_ties_svd", density=0.6, svd_rank=4),
    "magnitude-prune": dict(**AB, combination_type="magnitude_prune", density=0.5),
    "magnitude-prune-svd": dict(**AB, combination_type="magnitude_prune_svd", density=0.5, svd_rank=4),
}


def parts(model, name):
    """Returns (path, A, B) for every module of an adapter."""
    for path, m in model.named_modules():
        if hasattr(m, "lora_A") and name in m.lora_A:
            yield path, m, m.lora_A[name].weight, m.lora_B[name].weight


def combine(model, ids):
    """Adds every combination and returns the logits with it alone. DARE's draws come from one seed for each combination and are recorded."""
    bernoulli = torch.bernoulli
    results, masks = {}, {}
    for index, (name, options) in enumerate(CASES.items()):
        drawn = []
        g = torch.Generator().manual_seed(SEED + index)

        def recorded(p):
            drawn.append((torch.rand(p.shape, generator=g, dtype=F32) < p).to(p.dtype) if p.dtype == F32 else
                         (torch.rand(p.shape, generator=g, dtype=F32).to(p.dtype) < p).to(p.dtype))
            return drawn[-1]

        torch.bernoulli = recorded
        model.add_weighted_adapter(adapter_name=name, **options)
        torch.bernoulli = bernoulli
        if drawn:  # in PEFT's order: module, then A and B (or the product), then adapter
            sides = ["delta"] if "svd" in name else ["lora_A.weight", "lora_B.weight"]
            slots = [f"mask.{name}.{path}.{side}.{adapter}" for path, *_ in parts(model, name) for side in sides for adapter in options["adapters"]]
            assert len(slots) == len(drawn), (len(slots), len(drawn))
            masks |= dict(zip(slots, drawn))
        model.set_adapter(name)
        with torch.no_grad():
            results[name] = model(input_ids=ids[None]).logits[0]
    model.base_model.set_adapter(["a", "b"])
    with torch.no_grad():
        results["both"] = model(input_ids=ids[None]).logits[0]
    return results, masks


def main():
    out = arguments(__doc__).out.resolve()
    os.chdir(out)
    folder = out / "peft" / "weighted"
    warnings.simplefilter("ignore")
    for i, (name, fields) in enumerate(ADAPTERS.items()):
        torch.manual_seed(SEED + i)
        model = get_peft_model(load(BASE), LoraConfig(task_type="CAUSAL_LM", **fields))
        fill(model, SEED + i)
        save(model, folder / name)

    def attach(model):
        model = PeftModel.from_pretrained(model, folder / "a", adapter_name="a")
        model.load_adapter(folder / "b", "b")
        model.load_adapter(folder / "c", "c")
        return model.eval()

    plain = load(BASE)
    ids = random_rows([15], 140, SEED)[0]
    low_model = attach(load(BASE))
    low, masks = combine(low_model, ids)
    with float64(check=False):
        truth = double_model(type(plain), plain.config, plain.state_dict())
    truth = attach(truth).double()
    with float64(check=False):  # the draws are in float32 on purpose
        high, masks64 = combine(truth, ids)
    assert all((masks[k] == masks64[k]).all() for k in masks)
    tensors, records, products = {"ids": ids}, [], []
    for name, options in CASES.items():
        scaling = set()
        for (path, m, a, b), (_, _, la, lb) in zip(parts(truth, name), parts(low_model, name)):
            tensors |= {f"{name}.{path}.lora_A.weight": a.to(F32), f"{name}.{path}.lora_B.weight": b.to(F32)}
            products.append((lb @ la, b @ a))
            scaling.add(m.scaling[name])
            assert a.dtype == torch.float64, (name, a.dtype)
        assert len(scaling) == 1
        records.append({"name": name, **options, "rank": truth.peft_config[name].r, "scaling": scaling.pop()})
    tensors |= {f"logits.{k}": v.to(F32) for k, v in high.items()} | {k: v.to(torch.uint8) for k, v in masks.items()}
    with torch.no_grad():
        base = plain(input_ids=ids[None]).logits[0].double()
    observed = {"logits": worst((low[k], high[k]) for k in high), "product": worst(products)}
    prov = provenance(__file__, SEED, {k: max(2e-6, round_up(10 * v)) for k, v in observed.items()}, measure="max|a-b|/max|b| of each tensor", float32_error=observed)
    save_tensors(folder / "golden.safetensors", tensors, prov)
    save_records(folder / "golden.json", {"base": BASE, "provenance": prov}, records)
    print(observed, {k: round((v - base).abs().max().item(), 3) for k, v in high.items()}, [(r["name"], r["rank"], r["scaling"]) for r in records], len(masks))


if __name__ == "__main__":
    main()

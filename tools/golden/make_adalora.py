"""Writes peft/CASE/ for AdaLoRA: adapters that PEFT trained for 30 steps under a rank budget (run make_peft.py first).

  adapter_config.json, adapter_model.safetensors   as PEFT saves them at the end: rows reduced to the remaining ranks
  golden.safetensors   start.KEY: the weights at the start, with all ranks; curve [30]: loss with the orthogonal term, curve.plain [30]: without;
                       ids.N, labels.N, logits.N, merged.N (only where it differs), loss (with the term), grad.KEY of the saved adapter
  golden.json          base, kind, trainable, keys, budget: one record for each step, {step, budget, kept (PEFT's name of lora_E -> 0/1 for
                       each rank, only at steps that choose ranks), ranks left}; margin: smallest relative distance of an importance to the threshold
A step: loss, backward, AdamW (lr 1e-2, no decay), then update_and_allocate(step), step counted from 1. The importance is computed after the
optimizer step, from the gradient before it. Batches are batches.KIND.jsonl.
"""
import copy
import json
import os
import warnings

import peft
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from common import arguments, double_model, float64, provenance, round_up, save_json, save_tensors, worst
from make_peft import CLS, F32, KIND, LM, evaluate, forward, key_of, load, make_batches, make_rows, merged_logits, save, train, twin

SCHEDULE = dict(init_r=6, target_r=3, tinit=4, tfinal=8, deltaT=3, total_step=30, lora_alpha=8, orth_reg_weight=0.1)
CASES = {
    "adalora-llama3": ("models/llama3", LM, dict(target_modules=["q_proj", "v_proj"])),
    "adalora-gpt2": ("families/gpt2", LM, dict(target_modules=["c_attn"], fan_in_fan_out=True)),
    "adalora-bert-seqcls": ("families/bert-seqcls", CLS, dict(target_modules=["query", "value"], beta1=0.7, beta2=0.9)),
}


def fill(model, seed):
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.requires_grad:
            n = torch.randn(p.shape, generator=g)
            p.data.copy_(0.5 * n if "lora_E" in name else n * 0.2 if "lora_" in name else p.data + 0.1 * n)


def budget_run(model, kind, steps):
    """Returns the losses and the allocator's choice at each step."""
    allocator = model.base_model.rankallocator
    records, margins = [], []
    kth = torch.kthvalue

    def watched(x, k):
        out = kth(x, k=k)
        others = (x - out[0]).abs() / out[0]
        margins.append(others[others > 0].min().item())
        return out

    def after(step):
        torch.kthvalue = watched
        before = len(margins)
        budget, _ = allocator.budget_schedule(step)
        model.base_model.update_and_allocate(step)
        torch.kthvalue = kth
        e = {n.replace(".default", ""): p for n, p in model.base_model.model.named_parameters() if "lora_E" in n}
        pattern = model.peft_config["default"].rank_pattern
        record = {"step": step, "budget": budget}
        if len(margins) > before:
            record["kept"] = {k.replace(".default", ""): [int(b) for b in v] for k, v in pattern.items()}
        records.append(record | {"left": [int((p != 0).sum()) for p in e.values()]})

    terms = []
    losses = train(model, kind, steps, before=lambda m: terms.append(orthogonal_term(m)), after=after, keep=True)
    return losses, [a - b for a, b in zip(losses, terms)], records, min(margins)


def orthogonal_term(model):
    """Returns the orthogonal term as PEFT computes it: mean over all A and B of |AAᵀ - I| and |BᵀB - I|, times its weight."""
    terms = []
    for n, p in model.base_model.model.named_parameters():
        if "lora_A" in n or "lora_B" in n:
            c = p @ p.T if "lora_A" in n else p.T @ p
            terms.append(torch.linalg.norm(c - torch.eye(len(c), dtype=c.dtype)))
    return model.peft_config["default"].orth_reg_weight * (sum(terms) / len(terms)).item()


def attach(model, directory):
    """Freezes `ranknum`, the constant by which the product is divided: PEFT makes it trainable when it loads an adapter for training."""
    model = PeftModel.from_pretrained(model, directory, is_trainable=True).eval()
    for n, p in model.named_parameters():
        if "ranknum" in n:
            p.requires_grad_(False)
    return model


def main():
    out = arguments(__doc__).out.resolve()
    os.chdir(out)
    batches = make_batches(out / "peft")
    warnings.simplefilter("ignore")
    for index, (case, (base, task_type, fields)) in enumerate(CASES.items()):
        seed = 1400 + index
        directory, kind = out / "peft" / case, KIND[task_type]
        config = peft.AdaLoraConfig(task_type=task_type, **SCHEDULE, **fields)
        torch.manual_seed(seed)
        model = get_peft_model(load(base), copy.deepcopy(config)).eval()
        fill(model, seed)
        truth = twin(base, config, model)
        assert not any("ranknum" in n for n, p in model.named_parameters() if p.requires_grad)
        start = {f"start.{key_of(n, False)}": p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        with float64():
            high, plain, records, margin = budget_run(truth, kind, batches[kind])
        low, _, low_records, _ = budget_run(model, kind, batches[kind])
        assert [r.get("kept") for r in records] == [r.get("kept") for r in low_records], "float32 chose other ranks"
        with torch.no_grad():
            model.load_state_dict({k: v.to(v.dtype if not v.is_floating_point() else F32) for k, v in truth.state_dict().items()})
        model.peft_config["default"].rank_pattern = copy.deepcopy(truth.peft_config["default"].rank_pattern)
        save(model, directory)

        rows = make_rows(kind, load(base).config, seed)
        attached = attach(load(base), directory)
        logits, loss, grads = evaluate(attached, kind, rows, False)
        for row, y in zip(rows, logits):
            z = forward(model, kind, row)[0]
            assert torch.allclose(y, z, atol=2e-5), (case, (y - z).abs().max())
        plain_model = load(base)
        with float64(check=False):
            truth = double_model(type(plain_model), plain_model.config, plain_model.state_dict())
        truth = attach(truth, directory).double()
        trainable = {n: key_of(n, False) for n, p in truth.named_parameters() if p.requires_grad}
        with float64():
            logits64, loss64, grads64 = evaluate(truth, kind, rows, False)
            with torch.no_grad():
                merged = [merged_logits(m, kind, r) for m in [truth.merge_and_unload()] for r in rows]
        saved = load_file(directory / "adapter_model.safetensors")
        assert set(trainable.values()) <= set(saved), set(trainable.values()) - set(saved)
        gap = max((a - b).abs().max().item() for a, b in zip(logits64, merged))
        assert gap < 1e-9
        observed = {"logits": worst(zip(logits, logits64)), "loss": worst([(loss, loss64)]), "grad": worst((grads[k], grads64[k]) for k in grads if grads[k].numel()),
                    "curve": float(f"{max(abs(a - b) / b for a, b in zip(low, high)):.2g}")}
        tolerance = {k: max(2e-6, round_up(10 * v) if v else 0) for k, v in observed.items()}
        prov = provenance(__file__, seed, tolerance, measure="max|a-b|/max|b| of each tensor; curve: |a-b|/b of each step", float32_error=observed)
        t = lambda x: torch.tensor(x, dtype=torch.float64).to(F32)
        save_tensors(directory / "golden.safetensors", start | {"curve": t(high), "curve.plain": t(plain), "loss": loss64.to(F32)} |
                     {f"{k}.{i}": v for i, r in enumerate(rows) for k, v in r.items()} | {f"logits.{i}": v.to(F32) for i, v in enumerate(logits64)} |
                     {f"grad.{k}": v.to(F32) for k, v in grads64.items()}, prov)
        path = directory / "golden.json"
        head = {"base": base, "kind": kind, "trainable": trainable, "keys": {k: list(v.shape) for k, v in sorted(saved.items())}, "merged_minus_attached": float(f"{gap:.3g}"),
                "margin": float(f"{margin:.3g}"), "provenance": prov}
        body = ",\n".join("  " + json.dumps(r, separators=(",", ":")) for r in records)
        path.write_text(json.dumps(head, indent=1)[:-2] + f',\n "budget": [\n{body}\n ]\n}}\n')
        print(case, "saved", {tuple(v.shape) for v in saved.values()}, "margin", margin, observed, [round(x, 3) for x in high[::6]], [r["budget"] for r in records], [sum(r["left"]) for r in records])


if __name__ == "__main__":
    main()

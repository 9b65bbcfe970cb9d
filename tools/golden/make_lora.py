"""Writes lora/CASE/: adapter_config.json and adapter_model.safetensors as PEFT saves them, for adapters with random
non-zero weights on the tiny models (run make_models.py first), golden.json and golden.safetensors:

  ids.N [T] I64         rows
  logits.N [T,V]        with the adapter attached
  merged.N [T,V]        after PEFT's merge_and_unload, only where that differs from logits.N: on a tied model PEFT adds the
                        product to the shared matrix and so changes embedding and head (golden.json: merged_minus_attached)
  labels [T], loss []   for row 0, as in models/
  grad.KEY              gradient for every trainable tensor, KEY = its key in adapter_model.safetensors
All values are computed in float64 and rounded to float32.

golden.json: base model, trainable (PEFT's parameter name -> key in the file), keys (saved key -> shape),
merged_minus_attached (largest difference of logits in float64), adapter_effect (largest change of a logit by the adapter),
warnings that PEFT gave.
base_model_name_or_path in adapter_config.json is relative to models/.
"""
import json
import os
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from common import (arguments, double_model, float64, loss_of, provenance, random_rows, round_up, save_json,
                    save_tensors, some_labels, worst)

LENGTHS = [19, 4]
warnings.filterwarnings("ignore", category=FutureWarning)
PATTERNS = dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "down_proj", "up_proj"])
CASES = {
    "llama3-all-linear": ("llama3", dict(r=4, lora_alpha=8, target_modules="all-linear")),
    "qwen2-all-linear": ("qwen2", dict(r=4, lora_alpha=8, target_modules="all-linear")),
    "llama3-rslora": ("llama3", dict(r=8, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"])),
    "qwen2-rslora": ("qwen2", dict(r=8, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"])),
    "llama3-patterns": ("llama3", dict(**PATTERNS, rank_pattern={r"layers\.[12]\.self_attn\.q_proj": 6, "q_proj": 2, r"^model\.layers\.0\..*down_proj": 1},
                                       alpha_pattern={"k_proj": 3, r"model\.layers\.1\.mlp\.(up|down)_proj": 20})),
    "qwen2-patterns": ("qwen2", dict(**PATTERNS, use_rslora=True, rank_pattern={"down_proj": 9}, alpha_pattern={"0.self_attn.q_proj": 1})),
    "llama2-modules-to-save": ("llama2", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])),
    "qwen2-bias-lora-only": ("qwen2", dict(r=4, lora_alpha=8, bias="lora_only", target_modules=["q_proj", "v_proj", "o_proj"])),
    "llama2-lm-head": ("llama2", dict(r=4, lora_alpha=8, target_modules=["o_proj", "lm_head"])),
    "llama3-lm-head-tied": ("llama3", dict(r=4, lora_alpha=8, target_modules=["o_proj", "lm_head"])),
    "llama2-embed-tokens": ("llama2", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "v_proj"])),
    "llama3-embed-tokens-tied": ("llama3", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "v_proj"])),
}


def fill(model, seed):
    """Fills all weights with non-zero values: B ~ N(0, 0.05); embedding A and B and copies of modules and biases get noise too."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        n = torch.randn(p.shape, generator=g)
        if "lora_B" in name:
            p.data = 0.05 * n
        elif "lora_embedding" in name:
            p.data = 0.2 * n
        elif "lora_A" in name:
            p.data = n / p.shape[1] ** 0.5
        else:
            p.data = p.data + 0.1 * n


def key_of(name):
    """Returns the key under which PEFT saves a parameter."""
    return name.replace(".modules_to_save.default", "").replace(".default", "")


def run(model, rows, labels):
    with torch.no_grad():
        logits = [model(input_ids=r[None]).logits[0] for r in rows]
    loss = loss_of(model, rows[0], labels)
    loss.backward()
    grads = {key_of(n): p.grad for n, p in model.named_parameters() if p.requires_grad}
    return logits, loss.detach(), grads


def main():
    out = arguments(__doc__).out.resolve()
    os.chdir(out / "models")
    for index, (case, (base, fields)) in enumerate(CASES.items()):
        seed = 200 + index
        directory = out / "lora" / case
        load = lambda: AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
        torch.manual_seed(seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = get_peft_model(load(), LoraConfig(task_type="CAUSAL_LM", **fields))
            fill(model, seed)
            model.save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)
        (directory / "adapter_model.safetensors").chmod(0o644)
        config = json.loads((directory / "adapter_config.json").read_text())
        for k in ("target_modules", "modules_to_save"):
            if isinstance(config[k], list):
                config[k] = sorted(config[k])
        (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

        plain = load()
        rows = random_rows(LENGTHS, plain.config.vocab_size, seed)
        labels = some_labels(rows[0], seed)
        state = plain.state_dict()
        model = PeftModel.from_pretrained(load(), directory, is_trainable=True)
        logits, loss, grads = run(model, rows, labels)
        with float64(check=False):
            truth = double_model(type(plain), plain.config, state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            truth = PeftModel.from_pretrained(truth, directory, is_trainable=True).double()
        trainable = {n: key_of(n) for n, p in truth.named_parameters() if p.requires_grad}
        with float64():
            logits64, loss64, grads64 = run(truth, rows, labels)
            merged64 = truth.merge_and_unload()
            with torch.no_grad():
                merged64 = [merged64(input_ids=r[None]).logits[0] for r in rows]
        saved = load_file(directory / "adapter_model.safetensors")
        with torch.no_grad():
            effect = max((a.double() - plain(input_ids=r[None]).logits[0].double()).abs().max().item() for a, r in zip(logits64, rows))
        gap = max((a - b).abs().max().item() for a, b in zip(logits64, merged64))
        assert set(grads64) <= set(saved), set(grads64) - set(saved)
        observed = {"logits": worst(zip(logits, logits64)), "loss": worst([(loss, loss64)]),
                    "grad": worst((grads[k], grads64[k]) for k in grads)}
        tolerance = {k: max(2e-6, round_up(10 * v) if v else 0) for k, v in observed.items()}
        tensors = {f"ids.{i}": r for i, r in enumerate(rows)} | {f"logits.{i}": v.to(torch.float32) for i, v in enumerate(logits64)}
        if gap > 1e-9:
            tensors |= {f"merged.{i}": v.to(torch.float32) for i, v in enumerate(merged64)}
        tensors |= {"labels": labels, "loss": loss64.to(torch.float32)} | {f"grad.{k}": v.to(torch.float32) for k, v in grads64.items()}
        prov = provenance(__file__, seed, tolerance, measure="max|a-b|/max|b| of each tensor", float32_error=observed, loss=loss64.item())
        save_tensors(directory / "golden.safetensors", tensors, prov)
        save_json(directory / "golden.json", {
            "base": base, "trainable": trainable, "keys": {k: list(v.shape) for k, v in sorted(saved.items())},
            "merged_minus_attached": float(f"{gap:.3g}"), "adapter_effect": float(f"{effect:.3g}"),
            "warnings": sorted({str(w.message).strip() for w in caught if issubclass(w.category, UserWarning)}),
            "provenance": prov})
        print(case, "trainable", len(trainable), "saved", len(saved), "effect", round(effect, 3), "merge gap", gap, observed)


if __name__ == "__main__":
    main()

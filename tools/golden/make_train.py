"""Writes train/: 20 steps of LoRA training with PEFT on tiny llama3 (run make_models.py first).

  batches.jsonl        one step in each line, {"rows": [{"ids", "labels"}]}: ragged rows, first half not predicted (labels -100),
                       labels[i] is the token at i
  start/               the adapter that every run starts from (r=4, alpha=8, all-linear, B non-zero), as PEFT saves it
  RUN.safetensors      loss [20], lr [20] (the rate used in that step), grad_norm [20] (global L2 norm before clipping),
                       final.KEY: adapter weights after the last step, KEY as in adapter_model.safetensors
  runs.json            the settings of every run, the float64 losses in full precision, and the error of float32
loss = sum over the predicted tokens of a step / their number; torch AdamW, betas 0.9/0.999, eps 1e-8, decay on every trained
tensor; schedules from transformers, stepped after the optimizer; clipping by torch's clip_grad_norm_.
The reference is a float64 run, rounded to float32. Adam divides by the root of tiny second moments, so the weights of a float32
run deviate more from it than one gradient does: see float32_error.
"""
import json
import os
import random
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, get_constant_schedule, get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from common import arguments, double_model, float64, provenance, round_up, save_json, save_tensors, worst
from make_lora import fill, key_of

STEPS, ROWS, SEED = 20, 4, 300
constant, cosine, linear = get_constant_schedule, get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup
RUNS = {
    "constant": dict(weight_decay=0.0, schedule="constant"),
    "constant-decay": dict(weight_decay=0.01, schedule="constant"),
    "cosine-warmup-clip-decay": dict(weight_decay=0.01, schedule="cosine", warmup_steps=5, max_grad_norm=1.0),
    "linear-warmup": dict(weight_decay=0.0, schedule="linear", warmup_steps=3),
}
warnings.filterwarnings("ignore")


def make_batches(vocab):
    """Returns the ragged batches of the baseline, with short rows."""
    rng = random.Random(SEED)
    steps = []
    for _ in range(STEPS):
        rows = []
        for _ in range(ROWS):
            n = rng.randint(4, 32)
            ids = [rng.randrange(3, vocab) for _ in range(n)]
            rows.append({"ids": ids, "labels": [-100] * (n // 2) + ids[n // 2:]})
        steps.append({"rows": rows})
    return steps


def pad(rows):
    width = max(len(r["ids"]) for r in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    mask = torch.zeros_like(ids)
    for i, r in enumerate(rows):
        n = len(r["ids"])
        ids[i, :n], labels[i, :n], mask[i, :n] = torch.tensor(r["ids"]), torch.tensor(r["labels"]), 1
    return ids, labels, mask


def train(model, batches, lr=1e-3, weight_decay=0.0, schedule="constant", warmup_steps=0, max_grad_norm=None):
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay)
    sched = constant(opt) if schedule == "constant" else \
        {"cosine": cosine, "linear": linear}[schedule](opt, num_warmup_steps=warmup_steps, num_training_steps=STEPS)
    losses, rates, norms = [], [], []
    for step in batches:
        ids, labels, mask = pad(step["rows"])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params, max_grad_norm or float("inf")).item())
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        sched.step()
        opt.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses, rates, norms, {key_of(n): p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def main():
    out = arguments(__doc__).out.resolve()
    os.chdir(out / "models")
    base = lambda: AutoModelForCausalLM.from_pretrained("llama3", dtype=torch.float32, attn_implementation="eager")
    start = out / "train" / "start"
    torch.manual_seed(SEED)
    model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    fill(model, SEED)
    model.save_pretrained(start)
    (start / "README.md").unlink(missing_ok=True)
    (start / "adapter_model.safetensors").chmod(0o644)
    config = json.loads((start / "adapter_config.json").read_text())
    config["target_modules"].sort()
    (start / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    plain = base()
    batches = make_batches(plain.config.vocab_size)
    (out / "train" / "batches.jsonl").write_text("".join(json.dumps(b, separators=(",", ":")) + "\n" for b in batches))

    runs = {}
    for name, settings in RUNS.items():
        settings = dict(lr=1e-3) | settings
        low = train(PeftModel.from_pretrained(base(), start, is_trainable=True), batches, **settings)
        with float64(check=False):
            truth = double_model(type(plain), plain.config, plain.state_dict())
        truth = PeftModel.from_pretrained(truth, start, is_trainable=True).double()
        with float64():
            high = train(truth, batches, **settings)
        t = torch.tensor
        observed = {"loss": max(abs(a - b) / b for a, b in zip(low[0], high[0])), "grad_norm": max(abs(a - b) / b for a, b in zip(low[2], high[2])),
                    "final": worst((low[3][k], high[3][k]) for k in high[3])}
        observed = {k: float(f"{v:.2g}") for k, v in observed.items()}
        tolerance = {k: max(2e-6, round_up(10 * v)) for k, v in observed.items()} | {"lr": 1e-7}
        prov = provenance(__file__, SEED, tolerance, measure="relative; final: max|a-b|/max|b| of each tensor", float32_error=observed)
        tensors = {"loss": t(high[0], dtype=torch.float64), "lr": t(high[1], dtype=torch.float64), "grad_norm": t(high[2], dtype=torch.float64)}
        save_tensors(out / "train" / f"{name}.safetensors", {k: v.to(torch.float32) for k, v in tensors.items()} |
                     {f"final.{k}": v.to(torch.float32) for k, v in high[3].items()}, prov)
        runs[name] = {"settings": settings, "loss": high[0], "lr": high[1], "grad_norm": high[2], "float32_error": observed}
        print(name, "loss", [round(x, 3) for x in high[0]], "norm", round(min(high[2]), 2), round(max(high[2]), 2), observed)
    save_json(out / "train" / "runs.json", {
        "provenance": provenance(__file__, SEED, "see each safetensors file"), "model": "models/llama3", "adapter": "train/start",
        "optimizer": {"name": "AdamW", "betas": [0.9, 0.999], "eps": 1e-8}, "steps": STEPS, "runs": runs})


if __name__ == "__main__":
    main()

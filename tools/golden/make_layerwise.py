"""Writes layerwise/: 20 steps in which parts of tiny llama3 and mistral train in turn (run make_models.py and make_train.py first,
whose start adapter is used; the batches are those of make_qat.py).

  RUN.safetensors   loss [20], grad_norm [20] (global L2 norm of what trains), final.KEY: the weights of one layer after the last step
  runs.json         the recipe's fields of every run, what trained in each step, the float64 losses in full precision, and the error of float32

LISA is as in LMFlow's LISATrainer (src/lmflow/pipeline/utils/lisa_trainer.py, commit 4ca5ac3): requires_grad of the layers is switched every
K steps, and then the optimizer is made again, which keeps the state of the parameters outside of the layers only; so a layer that is drawn
twice in a row begins anew too. Its draw comes from NumPy's global generator; the layers here are those that Graft draws for seed 0.
BAdam is BlockOptimizer of the package badam 1.4. Its step counter begins at -1, since it otherwise leaves its first block after one step less
than the others; in random order, torch.randperm gives the order that Graft draws for seed 0. With LoRA it trains the LoRA of a block.
`last` and the schedules are torch's AdamW over parameters whose requires_grad is switched, with state that is dropped where one is frozen.
Reference: float64, rounded to float32.
"""
import io
import contextlib
import os
import re
import warnings

import torch
from badam import BlockOptimizer
from peft import PeftModel
from transformers import AutoModelForCausalLM

from common import PACKAGES, arguments, double_model, float64, provenance, round_up, save_records, save_tensors, worst
from make_lora import key_of
from make_train import STEPS, make_batches, pad

warnings.filterwarnings("ignore")
SEED, VOCABULARY, LR = 300, 131, 1e-3
KEPT = re.compile(r"^model\.norm|layers\.1\.(self_attn\.q|mlp\.down)_proj")
turns = lambda every, *parts: [list(parts[step // every]) for step in range(STEPS)]
E, H = "embeddings", "head"
RUNS = {
    "lisa": dict(model="llama3", policy="lisa", layers=1, every=3, weight_decay=0.01, trained=turns(3, *[[E, i, H] for i in (2, 0, 0, 1, 1, 1, 2)])),
    "lisa-two": dict(model="llama3", policy="lisa", layers=2, every=4, trained=turns(4, *[[E, *p, H] for p in ((0, 2), (0, 1), (0, 2), (0, 1), (1, 2))])),
    "lisa-untied": dict(model="mistral", policy="lisa", layers=1, every=4, trained=turns(4, *[[E, i, H] for i in (1, 0, 0, 1, 1)])),
    "lisa-lora": dict(model="llama3", lora=True, policy="lisa", layers=2, every=3, weight_decay=0.01,
                      trained=turns(3, *((0, 2), (0, 1), (0, 2), (0, 1), (1, 2), (1, 2), (1, 2)))),
    "badam-random": dict(model="llama3", policy="badam", every=3, trained=turns(3, *[[i] for i in (2, 0, 1, 0, 1, 2, 0)])),
    "badam-ascending": dict(model="llama3", policy="badam", every=4, order="ascending", trained=turns(4, *[[i] for i in (0, 1, 2, 0, 1)])),
    "badam-descending": dict(model="mistral", policy="badam", every=6, order="descending", trained=turns(6, *[[i] for i in (1, 0, 1, 0)])),
    "badam-fixed": dict(model="llama3", policy="badam", every=7, order="fixed", blocks=[1], trained=turns(7, [1], [1], [1])),
    "badam-everything": dict(model="mistral", policy="badam", every=3, order="ascending", blocks=[E, "layers", H],
                             trained=turns(3, *[[p] for p in (E, 0, 1, H, E, 0, 1)])),
    "badam-lora": dict(model="llama3", lora=True, policy="badam", every=5, order="descending", trained=turns(5, *[[i] for i in (2, 1, 0, 2)])),
    "last": dict(model="mistral", policy="last", layers=1, weight_decay=0.01, trained=[[1, H]] * STEPS),
    "last-tied": dict(model="llama3", policy="last", layers=2, trained=[[1, 2, H]] * STEPS),
    "schedule": dict(model="mistral", policy="schedule", weight_decay=0.01, trained=[[E, 0, 1, H]] * 4 + [[1, H]] * 5 + [[0, 1, H]] * 6 + [[0, H]] * 3 + [[0, 1, H]] * 2,
                     rules=[{"freeze": [E, 0], "step": 4}, {"train": 0, "step": 9}, {"freeze": "1-1", "step": 15, "for": 3}]),
}


def part_of(name):
    layer = re.search(r"\.layers\.(\d+)\.", name)
    return int(layer[1]) if layer else E if "embed_tokens" in name else H


def set_trained(params, parts):
    for name, p in params.items():
        p.requires_grad_(part_of(name) in parts)


def adamw(params, run):
    decays = [p for p in params if p.dim() > 1]
    groups = [{"params": decays, "weight_decay": run.get("weight_decay", 0.0)}, {"params": [p for p in params if p.dim() == 1], "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=LR, weight_decay=run.get("weight_decay", 0.0))


class Lisa:
    """The optimizer is made again in every turn; what is outside of the layers keeps its state."""

    def __init__(self, params, run):
        self.params, self.run, self.optimizer = params, run, None

    def begin(self, step):
        if step % self.run["every"]:
            return
        set_trained(self.params, self.run["trained"][step])
        before, self.optimizer = self.optimizer, adamw([p for p in self.params.values() if p.requires_grad], self.run)
        for name, p in self.params.items():
            if before and p in before.state and not isinstance(part_of(name), int):
                self.optimizer.state[p] = before.state[p]

    def step(self):
        self.optimizer.step()


class Badam:
    def __init__(self, params, run):
        parts = [run["trained"][step][0] for step in range(0, STEPS, run["every"])]
        count = len(set(parts))
        rounds = iter([list(reversed(parts[i: i + count])) for i in range(0, len(parts), count)])
        randperm = torch.randperm

        def given(n):
            order = next(rounds, [])
            return torch.tensor([i for i in range(n) if i not in order] + order)

        torch.randperm = given
        options = dict(include_embedding=E in run.get("blocks", []), include_lm_head=H in run.get("blocks", []))
        if run.get("order") == "fixed":
            options["start_block"] = run["blocks"][0]
        with contextlib.redirect_stdout(io.StringIO()):
            self.optimizer = BlockOptimizer(torch.optim.AdamW(params.values(), lr=LR, weight_decay=0.0), list(params.items()), switch_block_every=run["every"],
                                            switch_mode=run.get("order", "random"), **options)
        self.optimizer.global_step = -1
        self.params, self.run, self.given, self.randperm = params, run, given, randperm

    def begin(self, step):
        trained = {part_of(name) for name, p in self.params.items() if p.requires_grad}
        assert trained == set(self.run["trained"][step]), (step, trained, self.run["trained"][step])

    def step(self):
        torch.randperm = self.given
        with contextlib.redirect_stdout(io.StringIO()):
            self.optimizer.step()
        torch.randperm = self.randperm


class Switched:
    def __init__(self, params, run):
        self.params, self.run = params, run
        self.optimizer = adamw(list(params.values()), run)

    def begin(self, step):
        set_trained(self.params, self.run["trained"][step])
        for p in self.params.values():
            if not p.requires_grad:
                self.optimizer.state.pop(p, None)

    def step(self):
        self.optimizer.step()


def train(model, run, batches):
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = {"lisa": Lisa, "badam": Badam}.get(run["policy"], Switched)(params, run)
    losses, norms = [], []
    for step, batch in enumerate(batches):
        optimizer.begin(step)
        ids, labels, mask = pad(batch["rows"])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        assert all((p.grad is not None) == p.requires_grad for p in params.values())
        norms.append(torch.nn.utils.clip_grad_norm_(params.values(), float("inf")).item())
        optimizer.step()
        for p in params.values():
            p.grad = None
        losses.append(loss.item())
    final = {key_of(n) if run.get("lora") else n: p.detach() for n, p in params.items()}
    return losses, norms, {key: t for key, t in final.items() if KEPT.search(key)}


def main():
    out = arguments(__doc__).out.resolve()
    os.chdir(out / "models")
    batches = make_batches(VOCABULARY)
    records = []
    for name, run in RUNS.items():
        plain = AutoModelForCausalLM.from_pretrained(run["model"], dtype=torch.float32, attn_implementation="eager")
        with float64(check=False):
            truth = double_model(type(plain), plain.config, plain.state_dict())
        adapted = lambda model: PeftModel.from_pretrained(model, out / "train" / "start", is_trainable=True) if run.get("lora") else model
        low = train(adapted(plain), run, batches)
        truth = adapted(truth).double()
        with float64():
            high = train(truth, run, batches)
        relative = lambda a, b: max(abs(x - y) / y for x, y in zip(a, b))
        observed = {"loss": relative(low[0], high[0]), "grad_norm": relative(low[1], high[1]), "final": worst((low[2][k], high[2][k]) for k in high[2])}
        observed = {k: float(f"{v:.2g}") for k, v in observed.items()}
        tolerance = {k: max(1e-4 if k == "grad_norm" else 2e-5, round_up(10 * v)) for k, v in observed.items()}
        prov = provenance(__file__, SEED, tolerance, packages=[*PACKAGES, "badam"], measure="relative; final: max|a-b|/max|b| of each tensor", float32_error=observed)
        to_float = lambda values: torch.tensor(values, dtype=torch.float64).to(torch.float32)
        save_tensors(out / "layerwise" / f"{name}.safetensors", {"loss": to_float(high[0]), "grad_norm": to_float(high[1])} | {f"final.{k}": v.to(torch.float32) for k, v in high[2].items()}, prov)
        records.append({"name": name, **run, "loss": high[0], "float32_error": observed})
        print(name, [round(x, 3) for x in high[0][::4]], observed)
    save_records(out / "layerwise" / "runs.json", {"provenance": provenance(__file__, SEED, "see each safetensors file", packages=[*PACKAGES, "badam"]), "adapter": "train/start",
                                                   "batches": "qat/batches.jsonl", "lr": LR, "optimizer": {"name": "AdamW", "betas": [0.9, 0.999], "eps": 1e-8}, "steps": STEPS}, records, key="runs")


if __name__ == "__main__":
    main()

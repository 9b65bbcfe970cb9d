"""Writes optimizer/adamw.safetensors, optimizer/all.safetensors and optimizer/losses.json (run make_models.py and make_train.py first).

adamw.safetensors: six steps of torch.optim.AdamW in which some parameters have no gradient, with clipping before each.

  start.NAME, final.NAME     parameters before the first and after the last step
  STEP.grad.NAME             gradients before clipping; a missing one was None in that step
  exp_avg.NAME, exp_avg_sq.NAME, step.NAME   the state after the last step; missing for a parameter that never had a gradient
  norms [6]                  what clip_grad_norm_ returned; 0 for the step in which no parameter has a gradient
Names: matrix.I are decayed, vector.I are not. In step 1 only matrices have gradients, in step 2 only vectors, in step 4 nothing has one, and
`matrix.never` never has one. The settings are in the provenance.

all.safetensors: twenty steps of each case in CASES, all with the same gradients. Step T has the gradient grad.(T mod 3).NAME times FACTORS[T mod 4].

  start.NAME                 parameters before the first step; layers.* belong to blocks, all of two or more axes are decayed
  grad.I.NAME                three gradients, float32
  CASE.NAME                  parameters after the last step
  CASE.state.SLOT.NAME       of CASES with `states`: the state after the last step, under Graft's names
  codes.signed, codes.unsigned   bitsandbytes' two tables of 256 numbers
The provenance has the cases with the settings that a recipe gives, and `absent`: the steps in which a parameter has no gradient.

bitsandbytes' quantiser for processors looks codes up in a coarse table, so that small numbers get a code that is not the nearest one; on
GPUs, and in its portable implementation, the nearest is taken. So it is here, inside bitsandbytes' own AdamW8bit.
GaLore is computed in float32, as galore-torch decomposes in it; all else but 8 bits in float64. The sign of a singular vector is the
decomposition's choice and may differ between processors, and GaLore's first moments outlive the vectors: where these are chosen again within
the steps, beta1 is 0.

losses.json: twenty steps of full fine-tuning of models/llama3, whose output layer is its embeddings, on train/batches.jsonl with each optimizer of
LOSSES, in float32: the loss before each step. Under `recipe` stands what a recipe's train section gives.
"""
import json

import torch

from common import arguments, provenance, save_json, save_tensors

SEED, STEPS = 700, 6
SETTINGS = dict(lr=0.05, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, max_grad_norm=1.5)
SHAPES = {"matrix.0": (3, 4), "matrix.1": (2, 5), "matrix.never": (2, 2), "vector.0": (7,), "vector.1": (3,)}


def has_gradient(name, step):
    if name == "matrix.never" or step == 4:
        return False
    if step in (1, 2):
        return name.startswith("matrix" if step == 1 else "vector")
    return not (step == 3 and name.endswith(".1"))


def main():
    args = arguments(__doc__)
    g = torch.Generator().manual_seed(SEED)
    params = {n: torch.nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).float().double()) for n, s in SHAPES.items()}
    tensors = {f"start.{n}": p.detach().float() for n, p in params.items()}
    decayed = [p for n, p in params.items() if n.startswith("matrix")]
    groups = [{"params": decayed, "weight_decay": SETTINGS["weight_decay"]},
              {"params": [p for n, p in params.items() if n.startswith("vector")], "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=SETTINGS["lr"], betas=(SETTINGS["beta1"], SETTINGS["beta2"]), eps=SETTINGS["eps"])
    norms = []
    for step in range(STEPS):
        for n, p in params.items():
            if has_gradient(n, step):
                p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).float().double()
                tensors[f"{step}.grad.{n}"] = p.grad.float()
        norms.append(float(torch.nn.utils.clip_grad_norm_(params.values(), SETTINGS["max_grad_norm"])))
        opt.step()
        opt.zero_grad(set_to_none=True)
    for n, p in params.items():
        tensors[f"final.{n}"] = p.detach().float()
        for key, value in opt.state.get(p, {}).items():
            tensors[f"{key}.{n}"] = value.float()
    tensors["norms"] = torch.tensor(norms)
    save_tensors(args.out / "optimizer" / "adamw.safetensors", tensors, provenance(__file__, SEED, 1e-6, ["torch"], settings=SETTINGS, measure="max|a-b| / max|b|"))
    all_optimizers(args)


ALL_SEED, ALL_STEPS, LR = 710, 20, 0.02
FACTORS = [1.0, 0.25, 2.0, 0.5]  # exact in floating point
ALL_SHAPES = {"embed": (11, 7), "layers.0.wide": (24, 40), "layers.0.tall": (40, 24), "layers.0.square": (16, 16), "layers.0.cube": (3, 4, 5),
              "layers.0.norm": (24,), "layers.1.large": (61, 69), "layers.1.never": (6, 6), "vector": (5,)}
ABSENT = {"embed": [0, 7], "layers.0.tall": [3, 4, 12], "layers.0.norm": [0, 1, 2, 11], "layers.1.large": [9], "layers.1.never": list(range(ALL_STEPS)), "vector": [19]}


def sgd(groups, momentum, nesterov=False):
    return torch.optim.SGD(groups, lr=LR, momentum=momentum, nesterov=nesterov)


def lion(groups, beta1, beta2):
    from lion_pytorch import Lion
    return Lion(groups, lr=LR, betas=(beta1, beta2))


def adafactor(groups, beta1=None, **settings):
    from transformers.optimization import Adafactor
    eps = (settings.pop("eps"), 1e-3)
    return Adafactor(groups, lr=LR, beta1=beta1, eps=eps, scale_parameter=False, relative_step=False, **settings)


def adamw8bit(groups, beta1, beta2, eps):
    import bitsandbytes
    from bitsandbytes.backends.cpu import ops as processor

    def nearest(values, code, absmax_out, out, blocksize):
        n = values.numel()
        blocks = torch.cat([values.flatten(), values.new_zeros(-n % blocksize)]).view(-1, blocksize)
        absmax = blocks.abs().amax(1)
        ratios = (blocks / absmax[:, None]).flatten()[:n]
        out.copy_((ratios[:, None] - code).abs().argmin(1).view(out.shape))
        absmax_out.copy_(absmax)

    processor._quant_blockwise_fp32_direct = nearest
    return bitsandbytes.optim.AdamW8bit(groups, lr=LR, betas=(beta1, beta2), eps=eps)


def galore(groups, beta1, beta2, eps, **projection):
    from galore_torch import GaLoreAdamW
    projected = [{**group, "params": [p for p in group["params"] if p.dim() == 2 and p.in_block], **projection} for group in groups]
    rest = [{**group, "params": [p for p in group["params"] if not (p.dim() == 2 and p.in_block)]} for group in groups]
    return GaLoreAdamW([g for g in projected + rest if g["params"]], lr=LR, betas=(beta1, beta2), eps=eps, no_deprecation_warning=True)


ADAM = dict(beta1=0.9, beta2=0.99, eps=1e-8)
GALORE = dict(rank=4, update_proj_gap=200, scale=0.5)
CASES = {
    "sgd": (sgd, torch.float64, dict(momentum=0.0)),
    "sgd-momentum": (sgd, torch.float64, dict(momentum=0.9)),
    "sgd-nesterov": (sgd, torch.float64, dict(momentum=0.8, nesterov=True)),
    "lion": (lion, torch.float64, dict(beta1=0.9, beta2=0.98)),
    "adafactor": (adafactor, torch.float64, dict(decay_rate=-0.8, clip_threshold=1.0, eps=1e-30)),
    "adafactor-momentum": (adafactor, torch.float64, dict(beta1=0.8, decay_rate=-0.6, clip_threshold=0.5, eps=1e-12)),
    "adamw8bit": (adamw8bit, torch.float32, ADAM),
    **{"galore-" + kind: (galore, torch.float32, {**GALORE, "proj_type": kind, **ADAM, "eps": 1e-6}) for kind in ["std", "reverse_std", "left", "right"]},
    "galore-again": (galore, torch.float32, {**GALORE, "update_proj_gap": 4, "proj_type": "std", **ADAM, "beta1": 0.0}),
}
DECAY = 0.1
STATES = {"adamw8bit": {"exp_avg": ("state1", "qmap1", "absmax1"), "exp_avg_sq": ("state2", "qmap2", "absmax2")}}


def all_optimizers(args):
    from bitsandbytes.functional import create_dynamic_map

    g = torch.Generator().manual_seed(ALL_SEED)
    start = {n: torch.randn(s, generator=g) for n, s in ALL_SHAPES.items()}
    # Magnitudes over several decades, so that 8-bit codes of every size occur.
    grads = {(i, n): torch.randn(s, generator=g) * 10 ** -(3 * torch.rand(s, generator=g)) for i in range(3) for n, s in ALL_SHAPES.items()}
    tensors = {f"start.{n}": t for n, t in start.items()} | {f"grad.{i}.{n}": t for (i, n), t in grads.items() if n != "layers.1.never"}
    tensors |= {"codes.signed": create_dynamic_map(True), "codes.unsigned": create_dynamic_map(False)}
    for case, (make, dtype, settings) in CASES.items():
        params = {n: torch.nn.Parameter(t.to(dtype, copy=True)) for n, t in start.items()}
        for n, p in params.items():
            p.in_block = n.startswith("layers.")
        groups = [{"params": [p for p in params.values() if (p.dim() > 1) == decayed], "weight_decay": DECAY if decayed else 0.0} for decayed in (True, False)]
        opt = make(groups, **settings)
        for step in range(ALL_STEPS):
            for n, p in params.items():
                p.grad = None if step in ABSENT.get(n, []) else (grads[step % 3, n] * FACTORS[step % 4]).to(dtype)
            opt.step()
        for n, p in params.items():
            tensors[f"{case}.{n}"] = p.detach().float()
            for slot, (codes, table, largest) in STATES.get(case, {}).items():
                state = opt.state.get(p, {})
                if largest in state:
                    tensors[f"{case}.state.{slot}.{n}"] = state[codes]
                    tensors[f"{case}.state.{slot}_max.{n}"] = state[largest]
    prov = provenance(__file__, ALL_SEED, 1e-5, ["torch", "transformers", "bitsandbytes", "galore-torch", "lion-pytorch"], measure="max|a-b| / max|b|", steps=ALL_STEPS,
                      lr=LR, factors=FACTORS, absent=ABSENT,
                      cases={case: {"type": make.__name__, "weight_decay": DECAY, **settings} for case, (make, _, settings) in CASES.items()})
    save_tensors(args.out / "optimizer" / "all.safetensors", tensors, prov)
    losses(args)


LAYER_DECAY = 0.5
LOSSES = {  # reference, learning rate, settings, factor of the learning rate from layer to layer
    "adamw": (lambda groups, beta1, beta2, eps: torch.optim.AdamW(groups, lr=0, betas=(beta1, beta2), eps=eps), 1e-3, ADAM, None),
    "adamw-layers": (lambda groups, beta1, beta2, eps: torch.optim.AdamW(groups, lr=0, betas=(beta1, beta2), eps=eps), 3e-3, ADAM, LAYER_DECAY),
    "adamw8bit": (adamw8bit, 1e-3, ADAM, None),
    "sgd": (sgd, 2e-2, dict(momentum=0.9), None),
    "lion": (lion, 3e-4, dict(beta1=0.9, beta2=0.99), None),
    "adafactor": (adafactor, 1e-3, dict(decay_rate=-0.8, clip_threshold=1.0, eps=1e-30), None),
    "galore": (galore, 4e-3, dict(rank=4, update_proj_gap=8, scale=0.25, proj_type="std", **ADAM) | dict(beta1=0.0), None),
}


def losses(args):
    from transformers import AutoModelForCausalLM
    from make_train import pad

    batches = [json.loads(line) for line in (args.out / "train" / "batches.jsonl").read_text().splitlines()]

    def run(make, lr, settings, decay, threads):
        torch.set_num_threads(threads)
        model = AutoModelForCausalLM.from_pretrained(args.out / "models" / "llama3", dtype=torch.float32, attn_implementation="eager")
        layers = model.config.num_hidden_layers
        groups = []
        for n, p in model.named_parameters():
            p.in_block = n.startswith("model.layers.")
            below = layers - 1 - int(n.split(".")[2]) if p.in_block else layers if "embed" in n else 0
            groups.append({"params": [p], "lr": lr * (decay or 1) ** below, "weight_decay": DECAY if p.dim() > 1 else 0.0})
        opt = make(groups, **settings)
        seen = []
        for step in batches:
            ids, labels, mask = pad(step["rows"])
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            seen.append(loss.item())
        return seen

    runs = {}
    for name, (make, lr, settings, decay) in LOSSES.items():
        seen, again = (run(make, lr, settings, decay, threads) for threads in (1, 2))
        error = max(abs(a / b - 1) for a, b in zip(again, seen))
        recipe = {"lr": lr, "optimizer": {"type": name.split("-")[0], "weight_decay": DECAY, **settings}} | ({"layer_lr_decay": decay} if decay else {})
        # Where two singular values are close, their directions depend on the last digits of the gradient.
        runs[name] = {"recipe": recipe, "loss": seen, "tolerance": 1e-4 if name in ("galore", "adamw8bit") else 1e-5, "error_of_two_threads": error}
        print(name, error, [round(x, 3) for x in seen])
    save_json(args.out / "optimizer" / "losses.json", {
        "provenance": provenance(__file__, None, "of each run", ["torch", "transformers", "bitsandbytes", "galore-torch", "lion-pytorch"], measure="relative"),
        "model": "models/llama3", "batches": "train/batches.jsonl", "runs": runs})


if __name__ == "__main__":
    main()

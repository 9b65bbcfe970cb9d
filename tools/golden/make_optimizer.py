"""Writes optimizer/adamw.safetensors: six steps of torch.optim.AdamW in which some parameters have no gradient, with clipping before each.

  start.NAME, final.NAME     parameters before the first and after the last step
  STEP.grad.NAME             gradients before clipping; a missing one was None in that step
  exp_avg.NAME, exp_avg_sq.NAME, step.NAME   the state after the last step; missing for a parameter that never had a gradient
  norms [6]                  what clip_grad_norm_ returned; 0 for the step in which no parameter has a gradient
Names: matrix.I are decayed, vector.I are not. In step 1 only matrices have gradients, in step 2 only vectors, in step 4 nothing has one, and
`matrix.never` never has one. The settings are in the provenance.
"""
import torch

from common import arguments, provenance, save_tensors

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


if __name__ == "__main__":
    main()

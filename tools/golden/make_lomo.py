"""Writes optimizer/lomo.json: 20 steps of full fine-tuning with lomo-optim's Lomo and AdaLomo on tiny models (run make_train.py first).

  runs[NAME].model, .optimizer, .train    the model of models/, and the recipe's fields `train.optimizer` and `train`
  runs[NAME].loss, .lr, .grad_norm        of each step: the mean over predicted tokens, the rate used, the global 2-norm before clipping
  runs[NAME].moved                        by parameter: the 2-norm of what 20 steps changed
The rows are train/batches.jsonl, with ids modulo the model's vocabulary. The models' tables are tied (llama3, qwen2) and not (mistral). Weight decay: as in Graft for matrices only, by
one optimizer for them and one for the vectors. Everything is computed in float64; AdaLomo's state is put on the processor instead of a GPU,
and its loss scale of 2^10 is exact.
"""
import json
import os
import warnings

import torch

from common import arguments, double_model, float64, provenance, save_json
from make_train import STEPS, constant, cosine, linear, pad

from lomo_optim import AdaLomo, Lomo
from transformers import AutoModelForCausalLM

SEED = 0
RUNS = {
    "lomo": dict(model="llama3", optimizer=dict(type="lomo"), train=dict(lr=0.05)),
    "lomo-clipped-decay-cosine": dict(model="qwen2", optimizer=dict(type="lomo", clip_grad_value=0.02, weight_decay=0.1),
                                      train=dict(lr=0.5, schedule="cosine", warmup_steps=5)),
    "lomo-untied": dict(model="mistral", optimizer=dict(type="lomo"), train=dict(lr=0.05, schedule="linear", warmup_steps=3)),
    "adalomo": dict(model="llama3", optimizer=dict(type="adalomo"), train=dict(lr=0.01)),
    "adalomo-settings": dict(model="qwen2", optimizer=dict(type="adalomo", clip_grad_value=0.02, weight_decay=0.1, clip_threshold=0.5,
                                                           decay_rate=-0.6, eps=1e-10, min_scale=1e-2),
                             train=dict(lr=0.02, schedule="cosine", warmup_steps=5)),
    "adalomo-untied": dict(model="mistral", optimizer=dict(type="adalomo"), train=dict(lr=0.01, schedule="linear", warmup_steps=3)),
}
warnings.filterwarnings("ignore")


class Group:
    """Parameters of a model, as an optimizer of lomo-optim reads a model."""

    def __init__(self, named):
        self.named = named

    def named_parameters(self):
        return iter(self.named)

    def parameters(self):
        return (p for _, p in self.named)


def optimizers(model, type, weight_decay=0.0, **settings):
    """One for the matrices, which are decayed, and one for the vectors."""
    kind = {"lomo": Lomo, "adalomo": AdaLomo}[type]
    if "eps" in settings:
        settings["eps"] = (settings["eps"], settings.pop("min_scale"))
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [[(n, p) for n, p in named if (p.dim() > 1) == decayed] for decayed in (True, False)]
    return [kind(Group(group), lr=1.0, weight_decay=wd, **settings) for group, wd in zip(groups, (weight_decay, 0.0))]


def rates(lr, schedule="constant", warmup_steps=0):
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    sched = constant(opt) if schedule == "constant" else \
        {"cosine": cosine, "linear": linear}[schedule](opt, num_warmup_steps=warmup_steps, num_training_steps=STEPS)
    out = []
    for _ in range(STEPS):
        out.append(opt.param_groups[0]["lr"])
        opt.step()
        sched.step()
    return out


def train(model, batches, optimizer, train):
    params = [p for p in model.parameters() if p.requires_grad]
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    both = optimizers(model, **optimizer)
    losses, norms, lrs = [], [], rates(**train)
    for step, lr in zip(batches, lrs):
        ids, labels, mask = pad(step["rows"])
        vocab = model.config.vocab_size
        ids, labels = ids % vocab, torch.where(labels < 0, labels, labels % vocab)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        grads = torch.autograd.grad(loss, params, retain_graph=True)
        norms.append(torch.sqrt(sum((g ** 2).sum() for g in grads)).item())
        losses.append(loss.item())
        # As fused_backward does, for two optimizers and one backward pass.
        scale = getattr(both[0], "loss_scale", 1) or 1
        for opt in both:
            opt.lr = lr
            if hasattr(opt, "step_num"):
                opt.step_num += 1
        (loss * scale).backward()
        for opt in both:
            opt.grad_func(0)
        assert all(p.grad is None for p in params)
    return losses, norms, lrs, {n: (p.detach() - start[n]).norm().item() for n, p in model.named_parameters()}


def main():
    out = arguments(__doc__).out.resolve()
    os.chdir(out / "models")
    torch.Tensor.cuda = lambda self, *_args, **_options: self
    batches = [json.loads(line) for line in (out / "train" / "batches.jsonl").read_text().splitlines()]
    runs = {}
    for name, run in RUNS.items():
        plain = AutoModelForCausalLM.from_pretrained(run["model"], dtype=torch.float32, attn_implementation="eager")
        with float64(check=False):
            model = double_model(type(plain), plain.config, plain.state_dict())
        with float64():
            loss, norm, lr, moved = train(model, batches, run["optimizer"], run["train"])
        runs[name] = run | {"loss": loss, "lr": lr, "grad_norm": norm, "moved": moved}
        print(name, [round(x, 3) for x in loss], "norm", round(min(norm), 3), round(max(norm), 3))
    prov = provenance(__file__, SEED, {"loss": 1e-3, "lr": 1e-7, "grad_norm": 1e-3, "moved": 1e-3},
                      ["torch", "transformers", "lomo-optim"], measure="relative", rows="train/batches.jsonl")
    save_json(out / "optimizer" / "lomo.json", {"provenance": prov, "runs": runs})


if __name__ == "__main__":
    main()

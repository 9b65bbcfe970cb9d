"""Writes adapterhub/CASE/ with AdapterHub's `adapters`: bottleneck adapters on the tiny models of models/ and families/ (run make_models.py,
make_families.py and make_peft.py first). It needs a separate environment with an older transformers: requirements-adapterhub.txt.

  NAME/                 one directory for each adapter, as `adapters` saves it: adapter_config.json, adapter.safetensors (seq-bn-*, prefix-*, norms-bert:
                        pytorch_adapter.bin), and where the head is trained head_config.json with model_head.safetensors or
                        pytorch_model_head.bin; fusion/: adapter_fusion_config.json, model_adapter_fusion.safetensors
  golden.safetensors    ids.N (images: pixels.N), labels.N, logits.N, loss [] of row 0, grad.KEY for every trainable tensor, KEY as in
                        the files; curve [20] in some cases: AdamW lr 1e-2, no decay, over peft/batches.KIND.jsonl
  golden.json           base, kind, setup (which adapters, composed how), directories, trainable keys, adapter_effect; fusion_regularization:
                        the term that AdapterHub's trainer adds to the loss of a fusion; it is not in `loss`
  summed.*              average-outputs-*: `adapters` divides the weighted sum of the outputs again by their number (its default weights
                        are 1/n already); these are logits, loss and gradients of the weighted sum itself
lora-*, ia3-*, prefix-*: other methods in AdapterHub's layout, for reading and conversion.
norms-bert: adapter_norm_before and adapter_down.0 are one module under two keys, prefix-*: the pool is under a key of every layer too;
`adapters` cannot write that as safetensors.
average-weights-*: `avg` is what average_adapter made of `a` and `b`. Weights are random and far from their initialisation.
All values are computed in float64 and rounded to float32; dropout is off; rows are computed alone.
"""
import json
import os
import pathlib
import shutil
import tempfile

from common import arguments, double_model, float64, provenance, random_rows, round_up, save_json, save_tensors, some_labels, worst

import adapters
import adapters.composition as compose
import torch
import transformers as tf
from adapters.methods.bottleneck import BottleneckLayer
from safetensors.torch import load_file

PACKAGES = ["torch", "transformers", "adapters", "safetensors", "numpy"]
F32 = torch.float32
BERT, GPT2, LLAMA, VIT = "families/bert-seqcls", "families/gpt2", "models/llama3", "families/vit"
BASES = {BERT: ("BertForSequenceClassification", "class"), GPT2: ("GPT2LMHeadModel", "lm"), LLAMA: ("LlamaForCausalLM", "lm"), VIT: ("ViTForImageClassification", "image"),
         "families/bert": ("BertAdapterModel", "class")}
ABC = {n: "seq_bn[reduction_factor=4]" for n in "abc"}
# case: (base, {adapter: configuration}, setup, what else)
CASES = {}
for short, base in (("bert", BERT), ("gpt2", GPT2), ("llama3", LLAMA), ("vit", VIT)):
    one = lambda config, **more: (base, {"task": config}, "task", more)
    CASES |= {
        f"seq-bn-{short}": one("seq_bn[reduction_factor=4]", curve=short != "vit", head=short in ("bert", "vit"), safe=False),
        f"double-seq-bn-{short}": one("double_seq_bn[reduction_factor=4]", head=short == "bert"),
        f"par-bn-{short}": one("par_bn[reduction_factor=4]"),
        f"scaled-par-bn-{short}": one("scaled_par_bn[reduction_factor=4]"),
        f"compacter-{short}": one("compacter[reduction_factor=8]"),
        f"drop-{short}": one("double_seq_bn[reduction_factor=8,leave_out=[0]]"),
        f"stack-{short}": (base, {"lang": "seq_bn[reduction_factor=2]" if short == "vit" else "seq_bn_inv[reduction_factor=2]", "task": "seq_bn[reduction_factor=4]"}, {"stack": ["lang", "task"]}, {}),
        f"fuse-{short}": (base, ABC, {"fuse": ["a", "b", "c"]}, dict(fusion="dynamic")),
    }
    if short != "vit":
        CASES[f"seq-bn-inv-{short}"] = one("seq_bn_inv[reduction_factor=4]", curve=short == "llama3")
CASES |= {
    "compacter++-bert": (BERT, {"task": "compacter++[reduction_factor=4]"}, "task", dict(curve=True)),
    "compacter++-llama3": (LLAMA, {"task": "compacter++[reduction_factor=4]"}, "task", {}),
    "compacter-own-rule-gpt2": (GPT2, {"task": "compacter[reduction_factor=4,shared_phm_rule=False,factorized_phm_rule=True,phm_rank=2]"}, "task", {}),
    "double-seq-bn-inv-bert": (BERT, {"task": "double_seq_bn_inv[reduction_factor=4]"}, "task", {}),
    "adapter-plus-vit": (VIT, {"task": adapters.AdapterPlusConfig(reduction_factor=8, stochastic_depth=0.0)}, "task", {}),
    "mam-par-bn-llama3": (LLAMA, {"task": "par_bn"}, "task", {}),
    "gating-bert": (BERT, {"task": "seq_bn[reduction_factor=4,use_gating=True]"}, "task", {}),
    "gating-par-llama3": (LLAMA, {"task": "par_bn[reduction_factor=4,use_gating=True]"}, "task", {}),
    "norms-bert": (BERT, {"task": adapters.DoubleSeqBnConfig(reduction_factor=4, ln_before=True, ln_after=True, adapter_residual_before_ln=True, non_linearity="gelu")}, "task", dict(safe=False)),
    "norms-after-gpt2": (GPT2, {"task": adapters.SeqBnConfig(reduction_factor=4, ln_after=True, scaling="channel", non_linearity="leakyrelu")}, "task", {}),
    "residual-after-bert": (BERT, {"task": adapters.SeqBnConfig(reduction_factor=4, residual_before_ln=False)}, "task", {}),
    "residual-post-add-bert": (BERT, {"task": adapters.SeqBnConfig(reduction_factor=4, residual_before_ln="post_add")}, "task", {}),
    "factors-gpt2": (GPT2, {"task": adapters.SeqBnConfig(reduction_factor={"0": 2, "default": 8})}, "task", {}),
    "stack-double-bert": (BERT, {"lang": "double_seq_bn[reduction_factor=4]", "task": "double_seq_bn[reduction_factor=8]"}, {"stack": ["lang", "task"]}, {}),
    "fuse-static-bert": (BERT, ABC, {"fuse": ["a", "b", "c"]}, dict(fusion="static")),
    "fuse-double-llama3": (LLAMA, {n: "double_seq_bn[reduction_factor=4]" for n in "ab"}, {"fuse": ["a", "b"]}, dict(fusion="dynamic")),
    "average-outputs-bert": (BERT, ABC, {"average": ["a", "b", "c"], "weights": [0.5, 0.3, 0.2]}, {}),
    "average-outputs-llama3": (LLAMA, ABC, {"average": ["a", "b"], "weights": [0.6, 0.4]}, {}),
    "average-weights-bert": (BERT, {n: ABC[n] for n in "ab"}, "avg", dict(average=[0.6, 0.2])),
    "average-weights-llama3": (LLAMA, {n: ABC[n] for n in "ab"}, "avg", dict(average=[0.5, 0.5])),
    "lora-bert": (BERT, {"task": adapters.LoRAConfig(r=4, alpha=8)}, "task", {}),
    "lora-all-llama3": (LLAMA, {"task": adapters.LoRAConfig(r=4, alpha=8, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True)}, "task", {}),
    "lora-gpt2": (GPT2, {"task": adapters.LoRAConfig(r=4, alpha=8)}, "task", {}),
    "ia3-llama3": (LLAMA, {"task": "ia3"}, "task", {}),
    "prefix-llama3": (LLAMA, {"task": adapters.PrefixTuningConfig(prefix_length=5, bottleneck_size=12)}, "task", dict(safe=False)),
    "prefix-flat-llama3": (LLAMA, {"task": adapters.PrefixTuningConfig(prefix_length=5, flat=True)}, "task", dict(safe=False)),
    "prefix-flat-bert": (BERT, {"task": adapters.PrefixTuningConfig(prefix_length=5, flat=True)}, "task", dict(safe=False)),
    "flex-head-bert": ("families/bert", {"task": "seq_bn[reduction_factor=4]"}, "task", dict(head=True, flex=True)),
}
LENGTHS = [16, 5]


def load(base):
    """Loads the base in this older transformers; the Llamas are read through their config.v4.json."""
    cls = BASES[base][0]
    cls = getattr(tf, cls, None) or getattr(adapters, cls)
    with tempfile.TemporaryDirectory() as d:
        for file in ("config.json", "model.safetensors"):
            old = pathlib.Path(base, file.replace("config", "config.v4"))
            shutil.copy(old if old.exists() else pathlib.Path(base, file), pathlib.Path(d, file))
        model = cls.from_pretrained(d, dtype=F32, attn_implementation="eager").eval()
    for m in (model, model.base_model):
        m.name_or_path = base
    model.config._name_or_path = base
    return model


def check_base(base):
    """Checks that this transformers computes the same as the one that wrote the base's own golden."""
    golden = load_file(pathlib.Path(base, "golden.safetensors"))
    if "logits.0" not in golden:
        return
    names = {"ids.0": "input_ids", "token_types.0": "token_type_ids", "pixels.0": "pixel_values"}
    with torch.no_grad():
        logits = load(base)(**{names[k]: v[None] for k, v in golden.items() if k in names}).logits[0]
    error = worst([(logits, golden["logits.0"])])
    assert error < 1e-5, (base, error)


def block(setup):
    if isinstance(setup, str):
        return setup
    if "stack" in setup:
        return compose.Stack(*setup["stack"])
    if "fuse" in setup:
        return compose.Fuse(*setup["fuse"])
    return compose.Average(*setup["average"], weights=setup["weights"])


def build(model, configs, setup, more):
    """Adds adapters to the model, with the setup active and trainable."""
    if not more.get("flex"):
        adapters.init(model)
    for name, config in configs.items():
        model.add_adapter(name, config=config)
    if more.get("flex"):
        model.add_classification_head("task", num_labels=3)
    if "average" in more:
        model.average_adapter("avg", list(configs), weights=more["average"])
    active = block(setup)
    if "fusion" in more:
        model.add_adapter_fusion(active, more["fusion"])
        model.train_adapter_fusion(active, unfreeze_adapters=True)
    else:
        model.train_adapter(active)
    if not more.get("head"):
        for name, p in model.named_parameters():
            if name.startswith("classifier."):
                p.requires_grad_(False)
    return model.eval()


def fill(model, seed):
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if not (any(x in name for x in (".adapters.", "_adapters.", "adapter_fusion_layer", "shared_parameters", "heads.")) or p.requires_grad):
            continue
        n = torch.randn(p.shape, generator=g)
        if "classifier" in name:
            n = p.data + 0.1 * n
        elif "fusion" in name and "value.weight" in name:
            n = torch.eye(len(p)) + 0.1 * n
        elif "norm" in name or "scaling" in name:
            n = (1 if name.endswith("weight") or "scaling" in name else 0) + 0.2 * n
        elif "phm_rule" in name or "W_" in name or name.endswith("control_trans"):
            n = 0.6 * n
        elif p.dim() == 1:
            n = 0.1 * n
        else:
            n = n * (0.7 / p.shape[1] ** 0.5)
        p.data.copy_(n)


def make_rows(kind, config, seed):
    g = torch.Generator().manual_seed(seed)
    if kind == "image":
        shape = (config.num_channels, config.image_size, config.image_size)
        return [{"pixels": torch.randn(shape, generator=g), "labels": torch.randint(0, config.num_labels, (), generator=g)} for _ in range(2)]
    rows = [{"ids": r} for r in random_rows(LENGTHS, 90, seed)]
    for r in rows:
        r["labels"] = some_labels(r["ids"], seed) if kind == "lm" else torch.randint(0, 3, (), generator=g)
    return rows


def forward(model, kind, row):
    if kind == "image":
        x = {"pixel_values": row["pixels"].to(next(model.parameters()).dtype)[None]}
    else:
        x = {"input_ids": row["ids"][None]}
    out = model(**x, labels=row["labels"][None])
    return out.logits[0], out.loss


def evaluate(model, kind, rows):
    model.zero_grad()
    logits = []
    for i, row in enumerate(rows):
        y, l = forward(model, kind, row)
        if i == 0:
            l.backward()
            loss = l.detach()
        logits.append(y.detach())
    return logits, loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def train(model, kind, steps):
    start = {k: v.clone() for k, v in model.state_dict().items()}
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    losses = []
    for rows in steps:
        opt.zero_grad()
        counts = [(r["labels"][1:] != -100).sum().item() if kind == "lm" else 1 for r in rows]
        loss = sum(c / sum(counts) * forward(model, kind, r)[1] for c, r in zip(counts, rows))
        loss.backward()
        opt.step()
        losses.append(loss.item())
    opt.zero_grad()
    model.load_state_dict(start)
    return losses


def main():
    a = arguments(__doc__, only=dict(help="cases whose name has this in it"))
    out = a.out.resolve()
    os.chdir(out)
    for base in BASES:
        check_base(base)
    batches = {}
    for kind in ("lm", "class"):
        lines = (out / "peft" / f"batches.{kind}.jsonl").read_text().splitlines()[:20]
        batches[kind] = [[{k: torch.tensor(v) for k, v in r.items()} for r in json.loads(line)["rows"]] for line in lines]
    for index, (case, (base, configs, setup, more)) in enumerate(CASES.items()):
        if a.only and a.only not in case:
            continue
        seed = 1600 + index
        directory, kind = out / "adapterhub" / case, BASES[base][1]
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        torch.manual_seed(seed)
        model = build(load(base), configs, setup, more)
        fill(model, seed)
        if "average" in more:  # of the weights that were filled in
            model.delete_adapter("avg")
            model.average_adapter("avg", list(configs), weights=more["average"])
            model.train_adapter("avg")
            for name, p in model.named_parameters():
                if name.startswith("classifier."):
                    p.requires_grad_(False)
            model.eval()
        plain = load(base)
        with float64(check=False):
            truth = double_model(type(plain), plain.config, plain.state_dict())
            truth = build(truth, configs, setup, more).double().eval()
            truth.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in model.state_dict().items()})
        names = list(configs) + (["avg"] if "average" in more else [])
        safe = more.get("safe", True)
        for name in names:
            model.save_adapter(str(directory / name), name, with_head=bool(more.get("head")), use_safetensors=safe)
        if "fusion" in more:
            model.save_adapter_fusion(str(directory / "fusion"), block(setup), use_safetensors=safe)
        saved = {}
        for file in sorted(directory.rglob("*")):
            if file.suffix in (".bin", ".safetensors"):
                file.chmod(0o644)
                saved |= load_file(file) if file.suffix == ".safetensors" else torch.load(file)

        rows = make_rows(kind, plain.config, seed)
        logits, loss, grads = evaluate(model, kind, rows)
        again = load(base)
        if not more.get("flex"):
            adapters.init(again)
        for name in names:
            again.load_adapter(str(directory / name), use_safetensors=safe)
        if "fusion" in more:
            again.load_adapter_fusion(str(directory / "fusion"), use_safetensors=safe)
        again.set_active_adapters(block(setup))
        for row, y in zip(rows, logits):
            assert torch.allclose(forward(again.eval(), kind, row)[0], y, atol=1e-5), case
        with float64():
            logits64, loss64, grads64 = evaluate(truth, kind, rows)
        tensors = {}
        if "average" in setup:  # `adapters` takes the mean of the weighted outputs, so all is divided once more by their number
            mean = BottleneckLayer.mean
            BottleneckLayer.mean = lambda self, states, weights: mean(self, states, weights * len(states))
            with float64():
                summed = evaluate(truth, kind, rows)
            BottleneckLayer.mean = mean
            tensors |= {f"summed.logits.{i}": v.to(F32) for i, v in enumerate(summed[0])} | {"summed.loss": summed[1].to(F32)} | {f"summed.grad.{k}": v.to(F32) for k, v in summed[2].items()}
        assert set(grads64) <= set(saved), set(grads64) - set(saved)
        assert set(saved) <= set(dict(model.named_parameters(remove_duplicate=False)))
        zero = sorted(k for k, g in grads64.items() if g.abs().max() < 1e-12)
        for k in zero:
            grads64[k] = torch.zeros_like(grads64[k])
        observed = {"logits": worst(zip(logits, logits64)), "loss": worst([(loss, loss64)]), "grad": worst((grads[k], grads64[k]) for k in grads64 if k not in zero)}
        curve = None
        if more.get("curve"):
            with float64():
                curve = train(truth, kind, batches[kind])
            low = train(model, kind, batches[kind])
            observed["curve"] = float(f"{max(abs(x - y) / y for x, y in zip(low, curve)):.2g}")
        effect = None
        if not more.get("flex"):
            with torch.no_grad():
                effect = max((y - forward(plain, kind, r)[0].double()).abs().max().item() for r, y in zip(rows, logits64))
        tolerance = {k: max(2e-6, round_up(10 * v) if v else 0) for k, v in observed.items()}
        prov = provenance(__file__, seed, tolerance, packages=PACKAGES, measure="max|a-b|/max|b| of each tensor; curve: |a-b|/b of each step",
                          float32_error=observed, loss=loss64.item(), zero_gradients=zero)
        tensors |= {f"{k}.{i}": v for i, r in enumerate(rows) for k, v in r.items()} | {f"logits.{i}": v.to(F32) for i, v in enumerate(logits64)}
        tensors |= {"loss": loss64.to(F32)} | {f"grad.{k}": v.to(F32) for k, v in grads64.items()}
        if curve:
            tensors["curve"] = torch.tensor(curve)
        facts = {"fusion_regularization": float(f"{truth.base_model.get_fusion_regularization_loss():.9g}")} if more.get("fusion") == "dynamic" else {}
        if "average" in more:
            facts["average"] = {"of": list(configs), "weights": more["average"], "normalized": True}
        save_tensors(directory / "golden.safetensors", tensors, prov)
        save_json(directory / "golden.json", {"base": base, "kind": kind, "setup": setup, "directories": names + (["fusion"] if "fusion" in more else []), **facts,
                  "trainable": list(grads64), "keys": {k: list(v.shape) for k, v in sorted(saved.items())}, "adapter_effect": effect and float(f"{effect:.3g}"), "provenance": prov})
        print(case, "trainable", len(grads64), "saved", len(saved), "effect", effect and round(effect, 3), observed, "zero", len(zero), facts, [round(x, 3) for x in curve[::6]] if curve else "", flush=True)


if __name__ == "__main__":
    main()

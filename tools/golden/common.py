"""Shared by the golden scripts: provenance, files, a float64 context, comparison, tiny models. Writes nothing itself.

The truth of a golden is computed in float64 and rounded once to float32. transformers asks for float32 by name inside
norms, soft-max, rotary tables and the loss, so a model in float64 alone would not do: `float64()` makes those names
mean float64 while it is open and refuses any float32 result that an operation still produces.
"""
import argparse
import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

sys.dont_write_bytecode = True
torch.set_num_threads(1)

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ["torch", "transformers", "peft", "safetensors", "tokenizers", "jinja2", "gguf", "numpy"]


def arguments(doc, **extra):
    """Command line of every script: --out DIR (default test/golden of this repository) and what else it names."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=pathlib.Path, default=ROOT / "test" / "golden")
    for name, options in extra.items():
        p.add_argument("--" + name, **options)
    return p.parse_args()


def provenance(script, seed, tolerance, packages=PACKAGES, **more):
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"script": "tools/golden/" + pathlib.Path(script).name, "versions": versions, "seed": seed,
            "tolerance": tolerance, **more}


def save_tensors(path, tensors, prov):
    """safetensors with the provenance as JSON in the metadata entry `provenance`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    save_file(tensors, str(path), metadata={"provenance": json.dumps(prov, ensure_ascii=False)})  # one entry: their order is not fixed
    path.chmod(0o644)


def save_json(path, value, indent=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8", newline="\n")


def save_records(path, head, records, key="cases"):
    """A JSON document whose list stands one record a line, so that a diff shows what changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = ",\n".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in records)
    start = json.dumps(head, ensure_ascii=False, indent=1)[:-2]
    path.write_text(f'{start},\n "{key}": [\n{body}\n]}}\n', encoding="utf-8", newline="\n")


class NoFloat32(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor) and t.dtype in REAL_LOW:
                raise AssertionError(f"{func} made {t.dtype} in a float64 computation")
        return out


REAL_FLOAT32 = torch.float32
REAL_LOW = (torch.float32, torch.float16, torch.bfloat16)


@contextlib.contextmanager
def float64(check=True):
    """Inside, whatever asks for float32 gets float64. With check, an operation that yields less raises."""
    saved = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        with NoFloat32() if check else contextlib.nullcontext():
            yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = saved[:3]
        torch.set_default_dtype(saved[3])


def double_model(cls, config, state):
    """A model wholly in float64 (rotary tables too) with the given float32 weights. Call it inside float64(check=False)."""
    model = cls._from_config(config, attn_implementation="eager")
    model.to(torch.float64)
    missing, unexpected = model.load_state_dict({k: v.double() for k, v in state.items()}, strict=False)
    tied = {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()
    assert set(missing) <= tied and not unexpected, (missing, unexpected)
    model.tie_weights()
    for name, t in list(model.named_parameters()) + list(model.named_buffers()):
        assert not t.is_floating_point() or t.dtype == torch.float64, name
    return model


def randomise(model, seed):
    """Weights large enough that attention and the non-linear parts matter: logits come out of order one."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        n = torch.randn(p.shape, generator=g)
        if "embed" in name:
            p.data = n * (0.25 if model.config.tie_word_embeddings else 1)
        elif p.dim() == 1:
            p.data = 1 + 0.2 * n if "norm" in name else 0.3 * n
        else:
            p.data = n * (1.5 / math.sqrt(p.shape[1]))


def random_rows(lengths, vocab, seed):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (n,), generator=g) for n in lengths]


def some_labels(ids, seed):
    """The first third is not predicted, and of the rest about one in five is not."""
    g = torch.Generator().manual_seed(seed)
    labels = ids.clone()
    labels[: len(ids) // 3] = -100
    labels[torch.rand(len(ids), generator=g) < 0.2] = -100
    return labels


def loss_of(model, ids, labels):
    """Sum of the negative log likelihood over predicted tokens / their number; labels[i] is the token at i, shifted here."""
    logits = model(input_ids=ids[None]).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="mean")


def worst(pairs):
    """Largest |a-b| / max|b| over (float32 run, truth) pairs: what plain float32 costs."""
    errors = [((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30)).item() for a, b in pairs]
    return float(f"{max(errors):.2g}")


def round_up(x):
    """One significant figure, upwards: a tolerance ten times the error of float32 itself."""
    e = 10.0 ** math.floor(math.log10(x))
    return float(f"{math.ceil(x / e - 1e-9) * e:.0e}")


class FrozenClock(datetime.datetime):
    """What strftime_now sees in the chat goldens."""
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 3, 4, 5, 6, 7)

"""Shared by the golden scripts: provenance, files, a float64 context, comparison, tiny models. Writes no files itself.

The reference values of a golden are computed in float64 and rounded once to float32. transformers casts to float32 by name
inside norms, softmax, rotary tables and the loss, so a model in float64 is not enough: inside `float64()` those names mean
float64, and any operation that still gives a float32 result raises an error.
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
    """Parses the command line of every script: --out DIR (default test/golden of this repository) and its further options."""
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
    """Writes a safetensors file with the provenance as JSON in the metadata entry `provenance`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    save_file(tensors, str(path), metadata={"provenance": json.dumps(prov, ensure_ascii=False)})  # one entry: their order is not fixed
    path.chmod(0o644)


def save_json(path, value, indent=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8", newline="\n")


def save_records(path, head, records, key="cases"):
    """Writes a JSON document whose list has one record in each line, so that a diff shows the changes."""
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
    """A context in which every request for float32 gives float64. With check, an operation with a lower precision raises an error."""
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
    """Returns the model entirely in float64 (rotary tables too) with the given float32 weights. Call it inside float64(check=False)."""
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
    """Sets random weights that are large enough for attention and the nonlinear parts to matter: the logits are of order one."""
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
    """Returns labels: the first third is not predicted, and of the rest about one in five is not."""
    g = torch.Generator().manual_seed(seed)
    labels = ids.clone()
    labels[: len(ids) // 3] = -100
    labels[torch.rand(len(ids), generator=g) < 0.2] = -100
    return labels


def loss_of(model, ids, labels):
    """Returns the mean negative log-likelihood of the predicted tokens; labels[i] is the token at i, and is shifted here."""
    logits = model(input_ids=ids[None]).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="mean")


def worst(pairs):
    """Returns the largest |a-b| / max|b| over (float32 run, float64 reference) pairs: the error of plain float32."""
    errors = [((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30)).item() for a, b in pairs]
    return float(f"{max(errors):.2g}")


def round_up(x):
    """Returns ten times the error of float32, rounded up to one significant figure, as the tolerance."""
    e = 10.0 ** math.floor(math.log10(x))
    return float(f"{math.ceil(x / e - 1e-9) * e:.0e}")


class FrozenClock(datetime.datetime):
    """The clock of strftime_now in the chat goldens."""
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 3, 4, 5, 6, 7)

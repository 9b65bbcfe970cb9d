"""Loads models with transformers, and writes what it computes and how it tokenizes.

  python load.py --jobs FILE.json --out FILE.safetensors

The jobs are a list of {"dir": a Hugging Face directory, or a GGUF file, "ids": rows of token ids, or "pixels": images as nested lists,
"texts": of which the token ids are asked}. The tensors are `JOB.ROW`: logits [T, V] or [T, L], [L] of a classification, [T, 2] of
question answering, and the last hidden states [T, C] of a model without a head.
Last line: one JSON document with what transformers reports of each, and its token ids.
"""
import argparse
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file

p = argparse.ArgumentParser()
p.add_argument("--jobs", type=pathlib.Path, required=True)
p.add_argument("--out", type=pathlib.Path, required=True)
a = p.parse_args()
tensors, results = {}, []


def outputs(model, inputs):
    with torch.no_grad():
        out = model(**inputs)
    if "start_logits" in out:
        return torch.stack([out.start_logits[0], out.end_logits[0]], -1)
    return (out.logits if "logits" in out else out.last_hidden_state)[0]


def run(number, job):
    """Returns what transformers reports of one model."""
    where = pathlib.Path(job["dir"])
    where = dict(pretrained_model_name_or_path=where.parent, gguf_file=where.name) if where.is_file() else dict(pretrained_model_name_or_path=where)
    config = transformers.AutoConfig.from_pretrained(**where)
    cls = getattr(transformers, (config.architectures or ["AutoModelForCausalLM"])[0])
    model, info = cls.from_pretrained(**where, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    model.eval()
    for row, ids in enumerate(job.get("ids", [])):
        tensors[f"{number}.{row}"] = outputs(model, {"input_ids": torch.tensor([ids])})
    for row, pixels in enumerate(job.get("pixels", [])):
        tensors[f"{number}.{row}"] = outputs(model, {"pixel_values": torch.tensor([pixels])})
    result = {k: sorted(map(str, info[k])) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if job.get("texts"):
        result["token_ids"] = transformers.AutoTokenizer.from_pretrained(**where)(job["texts"])["input_ids"]
    return result


for number, job in enumerate(json.loads(a.jobs.read_text())):
    try:
        results.append(run(number, job))
    except Exception as error:  # a model that cannot be loaded is a result too
        results.append({"error": f"{type(error).__name__}: {error}"})
save_file({k: v.float().contiguous() for k, v in tensors.items()}, str(a.out))
print(json.dumps({"results": results, "transformers": transformers.__version__}))

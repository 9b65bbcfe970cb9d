"""Writes the logits of transformers, with a PEFT adapter if one is named, in the format of `graft logits`.

  python logits.py --model DIR [--adapter DIR] --ids FILE.json --out FILE.safetensors

Last line: one JSON document with the keys of the adapter file that PEFT does not expect, and those that it misses.
"""
import argparse
import json

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

p = argparse.ArgumentParser()
p.add_argument("--model", required=True)
p.add_argument("--adapter")
p.add_argument("--ids", required=True)
p.add_argument("--out", required=True)
a = p.parse_args()
model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, attn_implementation="eager")
keys = {}
if a.adapter:
    from peft import PeftModel, get_peft_model_state_dict

    model = PeftModel.from_pretrained(model, a.adapter)
    with safe_open(f"{a.adapter}/adapter_model.safetensors", "pt") as f:
        stored = set(f.keys())
    wanted = set(get_peft_model_state_dict(model))
    keys = {"keys": len(stored), "missing": sorted(wanted - stored), "unexpected": sorted(stored - wanted)}
model.eval()
with torch.no_grad():
    logits = {f"logits.{i}": model(input_ids=torch.tensor([row])).logits[0].contiguous() for i, row in enumerate(json.load(open(a.ids)))}
save_file(logits, a.out)
print(json.dumps(keys))

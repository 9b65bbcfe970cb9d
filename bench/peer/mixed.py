"""Generates with PEFT's mixed batch: every row of one batch uses an adapter of its own (`adapter_names`). Greedy, float32, KV cache.

  python mixed.py --model DIR --request FILE.json [--threads 2]

The request has `rows` (ids of prompts, all equally long), `adapters` (a directory for each row) and `tokens`. Last line: one JSON document with
the ids of each row, and the tokens generated in a second, the prompts' time included.
"""
import argparse
import json
import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

p = argparse.ArgumentParser()
p.add_argument("--model", required=True)
p.add_argument("--request", required=True)
p.add_argument("--threads", type=int, default=2)
a = p.parse_args()
torch.set_num_threads(a.threads)
request = json.load(open(a.request))
names = {path: f"a{i}" for i, path in enumerate(dict.fromkeys(request["adapters"]))}
base = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, attn_implementation="sdpa")
model = None
for path, name in names.items():
    if model is None:
        model = PeftModel.from_pretrained(base, path, adapter_name=name)
    else:
        model.load_adapter(path, adapter_name=name)
model.eval()
ids = torch.tensor(request["rows"])
start = time.perf_counter()
with torch.no_grad():
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=[names[path] for path in request["adapters"]],
                         max_new_tokens=request["tokens"], min_new_tokens=request["tokens"], do_sample=False, pad_token_id=0)
seconds = time.perf_counter() - start
print(json.dumps({"ids": out[:, ids.shape[1]:].tolist(), "tokens_per_s": request["tokens"] * len(request["rows"]) / seconds}))

"""Trains with PEFT and transformers as is usual: rows padded on the right, SDPA attention, AdamW; float32 on the CPU.

  python train.py --model DIR --batches FILE.jsonl [--method lora] [--adapter DIR] [--rank 8] [--threads 2] [--lr 1e-4] [--qat int4]
                  [--device cuda:0] [--dtype bfloat16]

With --qat the base's linear layers compute with torchao's fake-quantised weights (groups of 32), and LoRA is on them in float.
A line of the file is one optimizer step. Last line: one JSON document with losses, tokens_per_s (padding not counted, first
step left out), peak_rss_mb, and on a GPU peak_bytes of its tensors.
"""
import argparse
import json
import resource
import time

import torch
from peft import (AdaLoraConfig, IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig,
                  PromptTuningConfig, get_peft_model)
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

p = argparse.ArgumentParser()
p.add_argument("--model", required=True)
p.add_argument("--batches", required=True)
p.add_argument("--adapter")
p.add_argument("--method", default="lora", choices=["lora", "dora", "adalora", "ia3", "prefix", "prompt", "p-tuning", "full"])
p.add_argument("--rank", type=int, default=8)
p.add_argument("--threads", type=int, default=2)
p.add_argument("--lr", type=float, default=1e-4)
p.add_argument("--qat", choices=["int4", "int8"])
p.add_argument("--device", default="cpu")
p.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(a.model, dtype=getattr(torch, a.dtype), attn_implementation="sdpa")
model.config.use_cache = False
if a.qat:
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
    weight = IntxFakeQuantizeConfig(getattr(torch, a.qat), group_size=32, is_symmetric=True)
    head = model.get_output_embeddings()
    quantize_(model, QATConfig(weight_config=weight, step="prepare"), filter_fn=lambda m, _: isinstance(m, torch.nn.Linear) and m is not head)
if a.adapter:
    model = PeftModel.from_pretrained(model, a.adapter, is_trainable=True)
elif a.method != "full":
    virtual = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 20}
    low_rank = {"r": a.rank, "lora_alpha": 2 * a.rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(model, {
        "lora": lambda: LoraConfig(**low_rank), "dora": lambda: LoraConfig(**low_rank, use_dora=True),
        "adalora": lambda: AdaLoraConfig(task_type="CAUSAL_LM", init_r=12, target_r=8, target_modules="all-linear",
                                         total_step=sum(1 for _ in open(a.batches))),
        "ia3": lambda: IA3Config(task_type="CAUSAL_LM"), "prefix": lambda: PrefixTuningConfig(**virtual),
        "prompt": lambda: PromptTuningConfig(**virtual), "p-tuning": lambda: PromptEncoderConfig(**virtual, encoder_hidden_size=128),
    }[a.method]())
model.to(a.device).train()
optimizer = torch.optim.AdamW([q for q in model.parameters() if q.requires_grad], lr=a.lr, weight_decay=0.0)


def padded(rows, key, value):
    return pad_sequence([torch.tensor(r[key]) for r in rows], batch_first=True, padding_value=value).to(a.device)


losses, timed = [], []
for line in open(a.batches):
    rows = json.loads(line)["rows"]
    ids, labels = padded(rows, "ids", 0), padded(rows, "labels", -100)
    mask = padded([{"on": [1] * len(r["ids"])} for r in rows], "on", 0)
    start = time.perf_counter()
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    optimizer.step()
    if a.method == "adalora":
        model.base_model.update_and_allocate(len(timed))
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.item())  # waits for the device
    timed.append((sum(len(r["ids"]) for r in rows), time.perf_counter() - start))
print(json.dumps({
    "losses": losses, "tokens_per_s": sum(n for n, _ in timed[1:]) / sum(s for _, s in timed[1:]),
    "peak_bytes": torch.cuda.max_memory_allocated() if a.device.startswith("cuda") else 0,
    "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))

"""Trains LoRA with PEFT in several processes on Gloo, float32, under PyTorch's FSDP2 or DDP. Started by torchrun.

  torchrun --nproc-per-node N sharded.py --model DIR --batches FILE.jsonl [--wrap fsdp|ddp] [--threads 1] [--rank 8]

A line of the file is one optimizer step; process i takes rows i, i + N, …, padded on the right. The loss is a mean over the predicted tokens of
all processes. Last line of process 0: one JSON document with losses, tokens_per_s (padding not counted, first step left out), and peak_rss_mb,
that of the largest process.
"""
import argparse
import json
import resource
import time

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

p = argparse.ArgumentParser()
p.add_argument("--model", required=True)
p.add_argument("--batches", required=True)
p.add_argument("--wrap", default="fsdp", choices=["fsdp", "ddp"])
p.add_argument("--threads", type=int, default=1)
p.add_argument("--rank", type=int, default=8)
a = p.parse_args()
torch.set_num_threads(a.threads)
dist.init_process_group("gloo")
me, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
base = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, attn_implementation="sdpa")
base.config.use_cache = False
model = get_peft_model(base, LoraConfig(r=a.rank, lora_alpha=2 * a.rank, target_modules="all-linear", task_type="CAUSAL_LM"))
if a.wrap == "ddp":
    model = torch.nn.parallel.DistributedDataParallel(model)
else:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh("cpu", (world,))
    for layer in base.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
model.train()
optimizer = torch.optim.AdamW([q for q in model.parameters() if q.requires_grad], lr=1e-4, weight_decay=0.0)

losses, timed = [], []
for line in open(a.batches):
    rows = json.loads(line)["rows"]
    mine = rows[me::world]
    predicted = sum(y >= 0 for r in rows for y in r["labels"][1:])
    ids = pad_sequence([torch.tensor(r["ids"]) for r in mine], batch_first=True)
    labels = pad_sequence([torch.tensor(r["labels"]) for r in mine], batch_first=True, padding_value=-100)
    mask = pad_sequence([torch.ones(len(r["ids"]), dtype=torch.long) for r in mine], batch_first=True)
    start = time.perf_counter()
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum") / predicted
    (world * loss).backward()  # DDP and FSDP take means of gradients over processes
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    whole = loss.detach()
    dist.all_reduce(whole)
    timed.append((sum(len(r["ids"]) for r in rows), time.perf_counter() - start))
    losses.append(whole.item())
peak = torch.tensor(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
dist.all_reduce(peak, op=dist.ReduceOp.MAX)
if me == 0:
    print(json.dumps({"losses": losses, "tokens_per_s": sum(n for n, _ in timed[1:]) / sum(s for _, s in timed[1:]), "peak_rss_mb": peak.item()}))
dist.destroy_process_group()

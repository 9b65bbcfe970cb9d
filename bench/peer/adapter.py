"""Writes a PEFT LoRA adapter with both matrices random, so that it changes the logits: to start both sides from, and to load in Graft.

  python adapter.py --model DIR --out DIR [--rank 8] [--seed 0]
"""
import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

p = argparse.ArgumentParser()
p.add_argument("--model", required=True)
p.add_argument("--out", required=True)
p.add_argument("--rank", type=int, default=8)
p.add_argument("--seed", type=int, default=0)
a = p.parse_args()
torch.manual_seed(a.seed)
model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=a.rank, lora_alpha=2 * a.rank, target_modules="all-linear", task_type="CAUSAL_LM"))
for name, tensor in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(tensor, std=0.02)
model.save_pretrained(a.out)

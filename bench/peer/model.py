"""Writes a GGUF model as a Hugging Face directory in float32, so that the peer loads the same weights as Graft.

  python model.py --gguf FILE --out DIR
"""
import argparse
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

p = argparse.ArgumentParser()
p.add_argument("--gguf", type=pathlib.Path, required=True)
p.add_argument("--out", type=pathlib.Path, required=True)
a = p.parse_args()
where = dict(pretrained_model_name_or_path=a.gguf.parent, gguf_file=a.gguf.name)
model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
# transformers marks the dequantized model as quantized and would refuse to save it.
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.hf_quantizer, model.is_quantized = None, False
model.save_pretrained(a.out)
AutoTokenizer.from_pretrained(**where).save_pretrained(a.out)

"""Writes python.safetensors next to this file: src/io/safetensors.ts must write the same bytes.
Created with safetensors 0.8.0 and torch 2.11.0 (Python 3): every type that Graft supports, names that sort differently in
UTF-8 and UTF-16, characters that JSON escapes, a scalar and an empty tensor. It has one metadata key, because the library
writes several keys in random order."""
from pathlib import Path

import torch
from safetensors.torch import save_file

tensors = {'b':torch.arange(3,dtype=torch.int8),'a':torch.arange(4.).reshape(2,2),'Zed':torch.ones(2,dtype=torch.bfloat16),'c':torch.tensor([7]),'d':torch.tensor([True]),'é':torch.ones(1,dtype=torch.float16),'e"q\\\n\u2028\x7f\x01/':torch.ones(1,dtype=torch.float64),'i':torch.ones(1,dtype=torch.int32),'u':torch.ones(1,dtype=torch.uint8),'s':torch.ones(1,dtype=torch.int16),'scalar':torch.tensor(3.),'empty':torch.zeros(0,3),'xxx':torch.ones(1),'\U0001F600':torch.ones(1),'\uffee':torch.ones(1)}
save_file(tensors, Path(__file__).with_name('python.safetensors'), metadata={'format': 'pt'})

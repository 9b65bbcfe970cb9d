"""Writes rope/rope.json: the rotation that transformers computes from many spellings of rotary scaling. Each case has

  model_type, config      the fields of config.json that decide it, besides those in `common` (heads of 16 elements; GPT-NeoX: of 32)
  lengths                 for a row of each of these lengths, a number of the list below
  frequencies             the angle per position of each pair, for each different set of angles
  attention_factor        factor of cosines and sines

computed in float64 from float32's parameters. Angles of a row are those of the last token, in a model that has read nothing else.
"""
import json
import tempfile
import pathlib

import torch
from transformers import AutoConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from common import arguments, float64, provenance, save_records

COMMON = dict(vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
              num_key_value_heads=4, max_position_embeddings=64)
NEOX = dict(vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64)
LENGTHS = [1, 16, 17, 64, 65, 300]
SHORT, LONG = [1 + 0.1 * i for i in range(8)], [1.5 + i * i / 4 for i in range(8)]
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
LONGROPE = dict(rope_type="longrope", short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=16)
PLAIN = dict(rope_type="default", rope_theta=10000.0)


def new(**fields):
    return {"rope_parameters": {"rope_theta": 10000.0, **fields}}


def old(theta=10000.0, **fields):
    return {"rope_theta": theta, "rope_scaling": fields}


# Both spellings, and both at once: then rope_scaling counts.
LLAMA = [
    new(**PLAIN), {"rope_theta": 500000.0}, {}, {"rope_scaling": None, "rope_theta": 5000.0}, {"rope_scaling": {}, **new(**PLAIN)},
    new(rope_type="linear", factor=3.0), old(type="linear", factor=3.0), old(rope_type="linear", type="linear", factor=3),
    new(**LLAMA3), old(500000.0, **LLAMA3), old(**{k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}),
    new(**YARN), old(**YARN), old(1000000.0, type="yarn", factor=4.0, original_max_position_embeddings=16), old(type="yarn", factor=2.5),
    new(**YARN, beta_fast=8.0, beta_slow=0.5), new(**YARN, beta_fast=8, beta_slow=2, truncate=False), new(**YARN, attention_factor=1.3),
    new(**YARN, mscale=0.7, mscale_all_dim=0.4), new(**YARN, mscale=1.0, mscale_all_dim=1.0), new(**YARN, mscale=0.7), new(**{**YARN, "factor": None}),
    new(**{**YARN, "factor": 1.0}), old(**YARN, finetuned=True), {**old(type="yarn", factor=4.0), "original_max_position_embeddings": 32},
    {**new(**YARN), "original_max_position_embeddings": 32},
    new(**LONGROPE), old(**LONGROPE), new(**LONGROPE, factor=2.0), new(**LONGROPE, attention_factor=1.1),
    {**old(**{k: v for k, v in LONGROPE.items() if k != "original_max_position_embeddings"}), "original_max_position_embeddings": 16},
    new(rope_type="dynamic", factor=2.0), old(type="dynamic", factor=4.0), old(type="dynamic", factor=4.0, original_max_position_embeddings=16),
    new(rope_type="proportional", partial_rotary_factor=0.5), new(rope_type="proportional", partial_rotary_factor=0.3, factor=2.0), new(rope_type="proportional"),
    {**new(**PLAIN), **old(type="linear", factor=4.0)}, {**new(**PLAIN), "rope_scaling": YARN}, {**new(**LLAMA3), "rope_scaling": YARN},
    {**new(**YARN), "rope_scaling": dict(type="dynamic", factor=2.0)}, {"rope_parameters": {**PLAIN, "rope_theta": 1000000.0}, "rope_scaling": {**YARN, "rope_theta": 1000000.0}},
]
GPT_NEOX = [
    {}, {"rotary_pct": 0.5, "rotary_emb_base": 5000.0}, {"rotary_pct": 1.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rotary_pct": 0.5, "rope_scaling": YARN}, {"rotary_pct": 0.5, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    new(**YARN, partial_rotary_factor=0.5), new(rope_type="dynamic", factor=3.0, partial_rotary_factor=0.75), new(**PLAIN, partial_rotary_factor=0.25),
    {**new(**LONGROPE, partial_rotary_factor=0.5)}, new(**LLAMA3, partial_rotary_factor=0.5), new(rope_type="proportional", partial_rotary_factor=0.5),
]


def rotation(model_type, fields, cls):
    """Returns the sets of angles, which set a row of each length has, and the factor of attention."""
    with tempfile.TemporaryDirectory() as d:
        common = NEOX if model_type == "gpt_neox" else COMMON
        (pathlib.Path(d) / "config.json").write_text(json.dumps({"model_type": model_type, **common, **fields}))
        sets, which = [], []
        for length in LENGTHS:
            with float64(check=False):
                rope = cls(AutoConfig.from_pretrained(d))
                rope(torch.zeros(1), torch.arange(length)[None])
                angles, factor = rope.inv_freq.tolist(), float(rope.attention_scaling)
            if angles not in sets:
                sets.append(angles)
            which.append(sets.index(angles))
    return dict(model_type=model_type, config=fields, lengths=which, frequencies=sets, attention_factor=factor)


def main():
    out = arguments(__doc__).out
    cases = [rotation("llama", fields, LlamaRotaryEmbedding) for fields in LLAMA]
    cases += [rotation("gpt_neox", fields, GPTNeoXRotaryEmbedding) for fields in GPT_NEOX]
    prov = provenance(__file__, None, {"frequencies": 1e-6, "attention_factor": 1e-12}, measure="|a/b-1|, or |a| where b is 0")
    save_records(out / "rope" / "rope.json", {"provenance": prov, "lengths": LENGTHS, "common": {"llama": COMMON, "gpt_neox": NEOX}}, cases)
    print(len(cases), "cases,", sum(len(c["frequencies"]) for c in cases), "sets of angles")


if __name__ == "__main__":
    main()

"""Writes models/NAME/ for nine tiny random models: config.json and model.safetensors as transformers saves them,
config.v4.json (the same configuration in the style of transformers 4: rope_theta and rope_scaling at the top,
torch_dtype), and golden.safetensors:

  ids.N [T] I64            row N, ragged lengths
  logits.N [T,V]           logits of row N alone, computed in float64, rounded to float32
  hidden.embed, hidden.I, hidden.norm [T,C]   row 0: embeddings, output of decoder layer I, after the final norm
  labels [T] I64           for row 0: the token at each position or -100, not shifted
  loss []                  mean over predicted tokens of row 0
  grad.PATH                gradient of that loss for every parameter (a tied weight once, under its embedding name)

metadata.provenance: the error of float32 on this machine (largest |a-b|/max|b| of a tensor) and the tolerance.
"""
import json
import tempfile
import pathlib

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from common import (arguments, double_model, float64, loss_of, provenance, random_rows, randomise, round_up,
                    save_json, save_tensors, some_labels, worst)

COMMON = dict(bos_token_id=1, eos_token_id=2, use_cache=True)
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 256}
SMALL = dict(vocab_size=96, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             rms_norm_eps=1e-5)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0, "beta_slow": 0.5}
LONGROPE = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 16, "short_factor": [1.0, 1.1, 1.2, 1.5],
            "long_factor": [1.5, 2.0, 3.0, 4.0]}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
# name: (config class, new-style fields, the old-style spelling of the rope fields)
MODELS = {
    "llama2": (LlamaConfig, dict(vocab_size=131, hidden_size=32, intermediate_size=44, num_hidden_layers=2,
               num_attention_heads=4, num_key_value_heads=4, rms_norm_eps=1e-5, max_position_embeddings=256,
               tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
               dict(rope_theta=10000.0, rope_scaling=None)),
    "llama3": (LlamaConfig, dict(vocab_size=140, hidden_size=32, intermediate_size=44, num_hidden_layers=3,
               num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=2048,
               tie_word_embeddings=True, rope_parameters={**LLAMA3_ROPE, "rope_theta": 500000.0}),
               dict(rope_theta=500000.0, rope_scaling=LLAMA3_ROPE)),
    "llama-linear": (LlamaConfig, dict(vocab_size=128, hidden_size=32, intermediate_size=42, num_hidden_layers=2,
               num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=1024,
               attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
               rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
               dict(rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 4.0})),
    "mistral": (MistralConfig, dict(vocab_size=133, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
               num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=512,
               sliding_window=8, tie_word_embeddings=False,
               rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
               dict(rope_theta=10000.0)),
    "qwen2": (Qwen2Config, dict(vocab_size=150, hidden_size=40, intermediate_size=48, num_hidden_layers=2,
               num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=512,
               use_sliding_window=False, tie_word_embeddings=True,
               rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
               dict(rope_theta=1000000.0, sliding_window=512, max_window_layers=2)),
    "qwen3": (Qwen3Config, dict(vocab_size=137, hidden_size=32, intermediate_size=46, num_hidden_layers=2,
               num_attention_heads=4, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6, max_position_embeddings=512,
               use_sliding_window=False, attention_bias=False, tie_word_embeddings=True,
               rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
               dict(rope_theta=1000000.0, rope_scaling=None, sliding_window=None, max_window_layers=2)),
    # Scaled rotary positions; the first row is longer than the context before scaling, the others are not.
    "qwen3-yarn": (Qwen3Config, dict(**SMALL, head_dim=8, use_sliding_window=False, tie_word_embeddings=True,
               max_position_embeddings=64, rope_parameters={**YARN, "rope_theta": 10000.0}),
               dict(rope_theta=10000.0, rope_scaling=YARN, sliding_window=None, max_window_layers=2)),
    "llama-longrope": (LlamaConfig, dict(**SMALL, tie_word_embeddings=False, max_position_embeddings=64,
               rope_parameters={**LONGROPE, "rope_theta": 10000.0}), dict(rope_theta=10000.0, rope_scaling=LONGROPE)),
    "llama-dynamic": (LlamaConfig, dict(**SMALL, tie_word_embeddings=False, max_position_embeddings=16,
               rope_parameters={**DYNAMIC, "rope_theta": 10000.0}), dict(rope_theta=10000.0, rope_scaling=DYNAMIC)),
}
LENGTHS = [37, 1, 12, 5]
DROPPED_IN_V4 = {"rope_parameters", "dtype", "layer_types", "sliding_window", "max_window_layers"}


def old_style(directory, rope):
    """Returns config.v4.json, after a check that transformers reads it as the same configuration."""
    new = json.loads((directory / "config.json").read_text())
    old = {k: v for k, v in new.items() if k not in DROPPED_IN_V4 or (k == "sliding_window" and new["model_type"] == "mistral")}
    old |= {**rope, "torch_dtype": "float32", "transformers_version": "4.45.0"}
    with tempfile.TemporaryDirectory() as d:
        save_json(pathlib.Path(d) / "config.json", old, indent=2)
        a, b = AutoConfig.from_pretrained(d).to_dict(), AutoConfig.from_pretrained(directory).to_dict()
    skip = {"_name_or_path", "_model_name_or_path", "transformers_version", "max_window_layers"}
    clean = [{k: v for k, v in x.items() if k not in skip} for x in (a, b)]
    for x in clean:
        x["rope_parameters"].pop("type", None)
    assert clean[0] == clean[1], {k: (clean[0].get(k), clean[1].get(k)) for k in clean[0] | clean[1] if clean[0].get(k) != clean[1].get(k)}
    save_json(directory / "config.v4.json", dict(sorted(old.items())), indent=2)


def run(model, rows, labels):
    """Returns the logits of every row, and hidden states, loss and gradients of row 0."""
    hidden, hooks = {}, []
    keep = lambda name: lambda m, i, o: hidden.__setitem__(name, (o[0] if isinstance(o, tuple) else o)[0].detach())
    hooks.append(model.model.embed_tokens.register_forward_hook(keep("embed")))
    hooks += [layer.register_forward_hook(keep(str(i))) for i, layer in enumerate(model.model.layers)]
    hooks.append(model.model.norm.register_forward_hook(keep("norm")))
    with torch.no_grad():
        logits = [model(input_ids=rows[0][None]).logits[0]]
        for h in hooks:
            h.remove()
        logits += [model(input_ids=r[None]).logits[0] for r in rows[1:]]
    model.zero_grad()
    loss = loss_of(model, rows[0], labels)
    library = model(input_ids=rows[0][None], labels=labels[None]).loss
    assert torch.allclose(loss, library, rtol=1e-6), (loss, library)
    loss.backward()
    return logits, hidden, loss.detach(), {n: p.grad for n, p in model.named_parameters()}


def main():
    a = arguments(__doc__)
    for index, (name, (cls, fields, rope)) in enumerate(MODELS.items()):
        seed = 100 + index
        directory = a.out / "models" / name
        config = cls(**COMMON, **fields)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomise(model, seed)
        model.tie_weights()
        model.save_pretrained(directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        (directory / "model.safetensors").chmod(0o644)
        old_style(directory, rope)

        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        rows = random_rows(LENGTHS, config.vocab_size, seed)
        labels = some_labels(rows[0], seed)
        logits, hidden, loss, grads = run(model, rows, labels)
        with float64(check=False):
            truth = double_model(type(model), config, model.state_dict()).eval()
        with float64():
            logits64, hidden64, loss64, grads64 = run(truth, rows, labels)

        observed = {"logits": worst(zip(logits, logits64)), "hidden": worst((hidden[k], hidden64[k]) for k in hidden),
                    "loss": worst([(loss, loss64)]), "grad": worst((grads[k], grads64[k]) for k in grads)}
        tolerance = {k: max(2e-6, round_up(10 * v) if v else 0) for k, v in observed.items()}
        out = {f"ids.{i}": r for i, r in enumerate(rows)} | {f"logits.{i}": v.to(torch.float32) for i, v in enumerate(logits64)}
        out |= {f"hidden.{k}": v.to(torch.float32) for k, v in hidden64.items()}
        out |= {"labels": labels, "loss": loss64.to(torch.float32)}
        out |= {f"grad.{k}": v.to(torch.float32) for k, v in grads64.items()}
        save_tensors(directory / "golden.safetensors", out,
                     provenance(__file__, seed, tolerance, measure="max|a-b|/max|b| of each tensor", float32_error=observed,
                                loss=loss64.item()))
        print(name, "loss", round(loss64.item(), 4), "max logit", round(max(x.abs().max().item() for x in logits64), 2), observed)


if __name__ == "__main__":
    main()

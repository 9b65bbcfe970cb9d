"""Writes families/NAME/ for tiny random models of every family except Llama's, and for task heads (on Llama too):
config.json and model.safetensors as transformers saves them, and golden.safetensors:

  ids.N [T] I64            row N, ragged lengths; images: pixels.N [3,H,W] F32 instead
  token_types.N [T] I64    BERT only, and only where not all are zero
  logits.N                 [T,V] language model; [L] sequence or image classification; [T,L] tags; [T,2] start and end of an answer
  hidden.embed, hidden.I, hidden.norm [T,C]   row 0: the input of block 0, the output of block I, after the final norm (not BERT)
  hidden.pooled [C]        row 0, `bert` only: tanh(dense(first token))
  labels.N, loss.N []      every row's label and its loss alone: a class I64 [], a number F32 [], classes 0/1 F32 [L], tags I64 [T]
                           with -100 for no label, start and end I64 [2]
  grad.KEY                 gradient of loss.0 for every tensor of the file under its key (a tied weight once)
In gpt2 and gpt2-scaled they are `labels` and `loss`, unshifted, for row 0, as in make_models.py.
`bert`, which has no head: loss = sum(hidden.last * cotangent) + sum(hidden.pooled * cotangent_pooled).
deit-teacher has no loss in transformers: cross-entropy of its logits, the mean of both heads.
KEY and the names of hidden states are the checkpoint's; where the class names its modules otherwise (ViT, DeiT), golden.json has
`modules`: the key of the file -> the parameter of the transformers class, from which PEFT's keys are derived.
"""
import math
import pathlib

import torch
import transformers as tf
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from common import (arguments, double_model, float64, loss_of, provenance, random_rows, round_up, save_json, save_tensors,
                    some_labels, worst)
from make_models import LLAMA3_ROPE

GPT2 = dict(vocab_size=120, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
BERT = dict(vocab_size=110, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=48,
            pad_token_id=0)
SMALL = dict(vocab_size=90, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=40)
DISTIL = dict(vocab_size=90, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=40, pad_token_id=0)
VIT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8, num_channels=3)
LLAMA = dict(**SMALL | dict(max_position_embeddings=2048), num_key_value_heads=1, bos_token_id=1, eos_token_id=2,
             rope_parameters={**LLAMA3_ROPE, "rope_theta": 500000.0})
SMALL_BERT = {**SMALL, "pad_token_id": 0}
NEOX = dict(vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=64,
            bos_token_id=1, eos_token_id=2)
SMALL_GPT2 = dict(vocab_size=90, n_embd=16, n_layer=2, n_head=2, n_positions=40, bos_token_id=1, eos_token_id=2)
# name: (class, task, configuration). A new one goes to the end, since the seed of each is its place.
MODELS = {
    "gpt2": ("GPT2LMHeadModel", "lm", dict(**GPT2)),
    "gpt2-scaled": ("GPT2LMHeadModel", "lm", dict(**SMALL_GPT2, n_inner=40, activation_function="gelu", scale_attn_by_inverse_layer_idx=True,
                    reorder_and_upcast_attn=True, layer_norm_epsilon=1e-6, tie_word_embeddings=False)),
    "gpt2-seqcls": ("GPT2ForSequenceClassification", "class", dict(**SMALL_GPT2, num_labels=3, pad_token_id=0)),
    "gpt2-tokcls": ("GPT2ForTokenClassification", "tags", dict(**SMALL_GPT2, num_labels=5)),
    "gpt2-qa": ("GPT2ForQuestionAnswering", "span", dict(**SMALL_GPT2)),
    "bert": ("BertModel", "none", dict(**BERT)),
    "bert-seqcls": ("BertForSequenceClassification", "class", dict(**BERT, num_labels=3)),
    "bert-regression": ("BertForSequenceClassification", "number", dict(**SMALL_BERT, num_labels=1)),
    "bert-multilabel": ("BertForSequenceClassification", "classes", dict(**SMALL_BERT, num_labels=4, problem_type="multi_label_classification")),
    "bert-tokcls": ("BertForTokenClassification", "tags", dict(**BERT, num_labels=5)),
    "bert-qa": ("BertForQuestionAnswering", "span", dict(**SMALL_BERT, hidden_act="gelu_new", layer_norm_eps=1e-6)),
    "roberta-seqcls": ("RobertaForSequenceClassification", "class", dict(**SMALL, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=3)),
    "roberta-tokcls": ("RobertaForTokenClassification", "tags", dict(**SMALL, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=5)),
    "distilbert-seqcls": ("DistilBertForSequenceClassification", "class", dict(**DISTIL, num_labels=3)),
    "distilbert-tokcls": ("DistilBertForTokenClassification", "tags", dict(**DISTIL, sinusoidal_pos_embds=True, num_labels=5)),
    "vit": ("ViTForImageClassification", "class", dict(**VIT, num_labels=4)),
    "vit-small": ("ViTForImageClassification", "class", dict(**VIT | dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, image_size=24,
                  num_channels=1, qkv_bias=False, hidden_act="gelu_new", layer_norm_eps=1e-6), num_labels=3)),
    "deit": ("DeiTForImageClassification", "class", dict(**VIT | dict(hidden_size=16, intermediate_size=24, num_attention_heads=2), num_labels=3)),
    "deit-teacher": ("DeiTForImageClassificationWithTeacher", "class", dict(**VIT | dict(hidden_size=16, intermediate_size=24, num_attention_heads=2), num_labels=3)),
    "llama-seqcls": ("LlamaForSequenceClassification", "class", dict(**LLAMA, num_labels=3, pad_token_id=0)),
    "llama-tokcls": ("LlamaForTokenClassification", "tags", dict(**LLAMA, num_labels=5)),
    "llama-qa": ("LlamaForQuestionAnswering", "span", dict(**LLAMA)),
    "xlm-roberta-seqcls": ("XLMRobertaForSequenceClassification", "class", dict(**SMALL, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=3)),
    "gpt-neox": ("GPTNeoXForCausalLM", "lm", dict(**NEOX, rotary_pct=0.5)),
    "gpt-neox-serial": ("GPTNeoXForCausalLM", "lm", dict(**SMALL, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True,
                        hidden_act="gelu_new", layer_norm_eps=1e-6, bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "linear",
                        "factor": 2.0, "rope_theta": 5000.0, "partial_rotary_factor": 1.0})),
    "gpt-neox-seqcls": ("GPTNeoXForSequenceClassification", "class", dict(**SMALL, num_labels=3, pad_token_id=0)),
    "gpt-neox-tokcls": ("GPTNeoXForTokenClassification", "tags", dict(**SMALL, num_labels=5)),
    "gpt-neox-qa": ("GPTNeoXForQuestionAnswering", "span", dict(**SMALL)),
}
LENGTHS = [21, 3, 9]


def base_of(model):
    """Returns the model without its head, whose attribute name differs in transformers (Llama for question answering: `transformer`)."""
    return getattr(model, model.base_model_prefix, model)


def blocks_of(base):
    return next(m for m in base.modules() if isinstance(m, torch.nn.ModuleList))


def norm_of(base):
    """Returns the name of the norm after the last block; None where there is none (BERT)."""
    return next((name for name, m in base.named_children() if "norm" in type(m).__name__.lower()), None)


def reads_last_token(model):
    """Whether rows are classified by their last token before the padding: decoders, whose output layer is called so."""
    return hasattr(model, "score")


def randomise_modules(model, seed):
    """Does as common.randomise, by the kind of module: fan-in of Conv1D and of patches, norms near one, biases and tables non-zero."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            n = torch.randn(p.shape, generator=g)
            norm = "norm" in type(module).__name__.lower()
            if norm:
                p.data = 1 + 0.2 * n if name == "weight" else 0.3 * n
            elif isinstance(module, torch.nn.Embedding):
                p.data = 0.25 * n if getattr(model.config, "tie_word_embeddings", False) and "gpt2" in model.config.model_type else 0.7 * n
            elif name == "bias" or p.dim() == 1:
                p.data = 0.3 * n
            elif isinstance(module, Conv1D):
                p.data = n * (1.5 / math.sqrt(p.shape[0]))
            elif p.dim() in (2, 4):
                p.data = n * (1.5 / math.sqrt(p[0].numel()))
            else:
                p.data = 0.7 * n  # class token, positions of images
    model.tie_weights()


def make_inputs(task, model, seed):
    """Returns rows with their labels. Row 2 of a causal classifier ends in its pad token: the token before it is classified, as in transformers."""
    g = torch.Generator().manual_seed(seed)
    config = model.config
    if hasattr(config, "patch_size"):
        shape = (config.num_channels, config.image_size, config.image_size)
        rows = [{"pixel_values": torch.randn(shape, generator=g)} for _ in range(2)]
    else:
        rows = [{"input_ids": r} for r in random_rows(LENGTHS, config.vocab_size, seed)]
        if task == "class" and config.pad_token_id is not None and reads_last_token(model):
            rows[2]["input_ids"][-2:] = config.pad_token_id
        if config.model_type == "bert":
            rows[0]["token_type_ids"] = (torch.arange(LENGTHS[0]) > 8).long()
    labels = []
    for i, r in enumerate(rows):
        n = LENGTHS[i]
        labels.append({
            "lm": lambda: some_labels(r["input_ids"], seed), "none": lambda: None,
            "class": lambda: torch.randint(0, config.num_labels, (), generator=g),
            "number": lambda: torch.randn((), generator=g), "classes": lambda: torch.randint(0, 2, (config.num_labels,), generator=g).float(),
            "tags": lambda: torch.where(torch.rand(n, generator=g) < 0.3, -100, torch.randint(0, config.num_labels, (n,), generator=g)).index_fill(0, torch.tensor([n - 1]), 1),
            "span": lambda: torch.tensor([n // 3, n // 2 + 1] if i < 2 else [0, 0])}[task]())
    return rows, labels


def forward(model, task, row, label, extra):
    """Returns the logits of a row computed alone, and its loss: that of the library where it has one."""
    double = next(model.parameters()).dtype == torch.float64
    row = {k: (v.double() if double and v.is_floating_point() else v)[None] for k, v in row.items()}
    if task == "none":
        out = model(**row)
        loss = (out.last_hidden_state[0] * extra["cotangent"].to(out.last_hidden_state.dtype)).sum()
        return out.pooler_output[0], loss + (out.pooler_output[0] * extra["cotangent_pooled"].to(loss.dtype)).sum()
    if task == "lm":
        loss = loss_of(model, row["input_ids"][0], label)
        out = model(**row, labels=label[None])
        assert torch.allclose(loss, out.loss, rtol=1e-6)
        return out.logits[0], loss
    if task == "span":
        out = model(**row, start_positions=label[:1], end_positions=label[1:])
        return torch.stack([out.start_logits[0], out.end_logits[0]], -1), out.loss
    if "Teacher" in type(model).__name__:
        out = model(**row)
        return out.logits[0], torch.nn.functional.cross_entropy(out.logits, label[None])
    out = model(**row, labels=(label.double() if double and label.is_floating_point() else label)[None])
    return out.logits[0], out.loss


def run(model, task, rows, labels, extra, norm_name):
    hidden, hooks = {}, []
    base = base_of(model)
    keep = lambda name: lambda m, i, o: hidden.__setitem__(name, (o[0] if isinstance(o, tuple) else o)[0].detach())
    blocks = blocks_of(base)
    hooks.append(blocks[0].register_forward_pre_hook(lambda m, a, k: hidden.__setitem__("embed", (a[0] if a else k["hidden_states"])[0].detach()), with_kwargs=True))
    hooks += [b.register_forward_hook(keep(str(i))) for i, b in enumerate(blocks)]
    if norm_name:
        hooks.append(base.get_submodule(norm_name).register_forward_hook(keep("norm")))
    model.zero_grad()
    logits, losses = [], []
    for i, (row, label) in enumerate(zip(rows, labels)):
        y, loss = forward(model, task, row, label, extra)
        for h in hooks if i == 0 else ():
            h.remove()
        if i == 0:
            loss.backward()
        logits.append(y.detach())
        losses.append(loss.detach() if loss is not None else None)
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert set(hidden) == {"embed", *(str(i) for i in range(len(blocks))), *(["norm"] if norm_name else [])}, hidden.keys()
    return logits, losses, hidden, grads


def file_keys(model, path):
    """Returns the key in the file for each parameter of the class, matched by value: transformers renames on save."""
    saved = load_file(path)
    names = {}
    for name, p in model.named_parameters():
        found = [k for k, v in saved.items() if v.shape == p.shape and torch.equal(v, p.data)]
        assert len(found) == 1, (name, found)
        names[name] = found[0]
    assert set(names.values()) == set(saved), set(saved) - set(names.values())
    return names


def main():
    out = arguments(__doc__).out
    for index, (name, (cls, task, fields)) in enumerate(MODELS.items()):
        seed = 1000 + index
        directory = out / "families" / name
        cls = getattr(tf, cls)
        config = cls.config_class(**fields)
        model = cls(config).float()
        randomise_modules(model, seed)
        if config.model_type == "distilbert" and config.sinusoidal_pos_embds:
            tf.models.distilbert.modeling_distilbert.create_sinusoidal_embeddings(config.max_position_embeddings, config.dim, model.distilbert.embeddings.position_embeddings.weight.data)
        model.save_pretrained(directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        (directory / "model.safetensors").chmod(0o644)

        model = cls.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        rows, labels = make_inputs(task, model, seed)
        extra = {}
        if task == "none":
            g = torch.Generator().manual_seed(seed + 7)
            extra = {"cotangent": torch.randn(LENGTHS[0], config.hidden_size, generator=g) / 10, "cotangent_pooled": torch.randn(config.hidden_size, generator=g)}
            rows = rows[:1]
        norm = norm_of(base_of(model))
        logits, losses, hidden, grads = run(model, task, rows, labels, extra, norm)
        with float64(check=False):
            truth = double_model(cls, config, model.state_dict()).eval()
        with float64():
            logits64, losses64, hidden64, grads64 = run(truth, task, rows, labels, extra, norm)

        keys = file_keys(model, directory / "model.safetensors")
        unused = sorted(keys[k] for k, g in grads64.items() if g is None)
        grads, grads64 = ({keys[k]: v for k, v in g.items() if v is not None} for g in (grads, grads64))
        scale = max(g.abs().max() for g in grads64.values())
        zero = sorted(k for k, g in grads64.items() if g.abs().max() < 1e-9 * scale)  # bias of the keys: softmax does not depend on it
        observed = {"logits": worst(zip(logits, logits64)), "hidden": worst((hidden[k], hidden64[k]) for k in hidden),
                    "loss": worst(zip(losses, losses64)), "grad": worst((grads[k], grads64[k]) for k in grads if k not in zero)}
        tolerance = {k: max(2e-6, round_up(10 * v) if v else 0) for k, v in observed.items()}
        f32 = torch.float32
        tensors = {}
        for i, row in enumerate(rows):
            tensors |= {{"input_ids": "ids", "token_type_ids": "token_types", "pixel_values": "pixels"}[k] + f".{i}": v for k, v in row.items()}
        if task == "none":
            tensors |= {"hidden.pooled": logits64[0].to(f32), "loss.0": losses64[0].to(f32), **extra}
        elif task == "lm":
            tensors |= {f"logits.{i}": v.to(f32) for i, v in enumerate(logits64)} | {"labels": labels[0], "loss": losses64[0].to(f32)}
        else:
            for i in range(len(rows)):
                tensors |= {f"logits.{i}": logits64[i].to(f32), f"labels.{i}": labels[i], f"loss.{i}": losses64[i].to(f32)}
        tensors |= {f"hidden.{k}": v.to(f32) for k, v in hidden64.items()}
        tensors |= {f"grad.{k}": torch.zeros_like(v, dtype=f32) if k in zero else v.to(f32) for k, v in grads64.items()}
        prov = provenance(__file__, seed, tolerance, measure="max|a-b|/max|b| of each tensor", float32_error=observed, loss=losses64[0].item(),
                          task=task, zero_gradients=zero, unused=unused)
        save_tensors(directory / "golden.safetensors", tensors, prov)
        renamed = {v: k for k, v in keys.items() if k != v}
        if renamed:
            save_json(directory / "golden.json", {"modules": dict(sorted(renamed.items())), "provenance": prov})
        print(name, "loss", [round(x.item(), 4) for x in losses64 if x is not None], "max logit", round(max(x.abs().max().item() for x in logits64), 2), observed,
              "zero", len(zero), "unused", unused, "renamed", len(renamed))


if __name__ == "__main__":
    main()

"""Writes lora/targets.json: the modules that PEFT's get_peft_model selects for many LoRA configurations on tiny models.

models.NAME: {modules: [[path, kind]], head: path of the output embedding or null, tied}   kind: Linear Conv1D Embedding other
cases[]: {name, model, config, then either
   matched: {path: [r, alpha, scaling]}, saved: [paths wrapped by modules_to_save], warnings: [text]   or
   error: class, message}
config has only the fields that differ from PEFT's defaults; the order of pattern keys matters (the first match wins).
The results are not random; no tolerance applies.
"""
import os
import sys
import warnings

if os.environ.get("PYTHONHASHSEED") != "0":  # PEFT prints sets in its messages: fix their order
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import AuxiliaryTrainingWrapper
from transformers import (BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig,
                          LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel)
from transformers.pytorch_utils import Conv1D

from common import arguments, provenance, save_records

llama = lambda n, **k: LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=n, num_attention_heads=2,
                                   num_key_value_heads=1, **k)
MODELS = {
    "causal": lambda: LlamaForCausalLM(llama(3)),
    "causal12": lambda: LlamaForCausalLM(llama(12)),
    "tied": lambda: LlamaForCausalLM(llama(2, tie_word_embeddings=True)),
    "base": lambda: LlamaModel(llama(3)),
    "llama-cls": lambda: LlamaForSequenceClassification(llama(2, num_labels=3, pad_token_id=0)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=2, n_head=2, n_positions=16)),
    "bert-cls": lambda: BertForSequenceClassification(BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=2,
                        num_attention_heads=2, intermediate_size=8, max_position_embeddings=16, num_labels=3)),
}
QV = ["q_proj", "v_proj"]
ATTN = ["q_proj", "k_proj", "v_proj", "o_proj"]
C = []


def case(name, model="causal", **config):
    C.append((name, model, config))


for m in MODELS:
    case(f"all-linear on {m}", m, target_modules="all-linear")
case("all-linear in capitals", target_modules="ALL-LINEAR")
case("all-linear with SEQ_CLS", "llama-cls", target_modules="all-linear", task_type="SEQ_CLS")
case("all-linear with SEQ_CLS on bert", "bert-cls", target_modules="all-linear", task_type="SEQ_CLS")
case("all-linear in a list is a plain name", target_modules=["all-linear"])
case("all-linear and exclude list", target_modules="all-linear", exclude_modules=["k_proj", "down_proj"])
case("all-linear and exclude full path", target_modules="all-linear", exclude_modules=["model.layers.1.mlp.up_proj"])
case("all-linear and exclude regex", target_modules="all-linear", exclude_modules=r".*\.layers\.[02]\..*")
case("all-linear and layers_to_transform", target_modules="all-linear", layers_to_transform=[0])
case("all-linear and modules_to_save lm_head", target_modules="all-linear", modules_to_save=["lm_head"])
case("default targets of llama")
case("default targets of gpt2", "gpt2")
case("suffix list", target_modules=QV)
case("suffix list on the bare model", "base", target_modules=QV)
case("one suffix", target_modules=["o_proj"])
case("suffix of two segments", target_modules=["self_attn.q_proj", "mlp.up_proj"])
case("suffix must start at a dot", target_modules=["proj", "attn.q_proj", "up_proj"])
case("suffix that names a parent is refused", target_modules=["self_attn"])
case("norm is refused", target_modules=["input_layernorm"])
case("suffix with a digit segment", target_modules=["1.self_attn.q_proj"])
case("exact path", target_modules=["model.layers.2.self_attn.k_proj"])
case("exact path and suffix", target_modules=["model.layers.2.self_attn.k_proj", "v_proj"])
case("exact path of the nested model on the bare one", "base", target_modules=["model.layers.2.self_attn.k_proj"])
case("exact path on the bare model", "base", target_modules=["layers.2.self_attn.k_proj"])
case("dots in a list are literal", target_modules=["layers.*.q_proj", "k_proj"])
case("unknown name beside a known one", target_modules=["q_proj", "query"])
case("nothing matches", target_modules=["query"])
case("nothing matches, with layers", target_modules=["query"], layers_to_transform=[1], layers_pattern="layers")
case("empty list", target_modules=[])
case("embedding", target_modules=["embed_tokens", "q_proj"])
case("lm_head by name", target_modules=["lm_head"])
case("lm_head and embedding", target_modules=["lm_head", "embed_tokens"])
case("lm_head on a tied model", "tied", target_modules=["lm_head"])
case("embedding on a tied model, tying ensured", "tied", target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True)
case("score of a classifier", "llama-cls", target_modules=["q_proj", "score"], task_type="SEQ_CLS")
case("classifier saved automatically", "bert-cls", target_modules=["query", "value"], task_type="SEQ_CLS")
case("bert dense is in three places", "bert-cls", target_modules=["dense"])
case("bert dense of attention only", "bert-cls", target_modules=["attention.output.dense"])
case("gpt2 c_proj in two places", "gpt2", target_modules=["c_proj"], fan_in_fan_out=True)
case("gpt2 c_attn", "gpt2", target_modules=["c_attn"])
case("regex full match", target_modules=r".*\.(q|v)_proj")
case("regex without a leading part does not search", target_modules=r"(q|v)_proj")
case("regex layers", target_modules=r"model\.layers\.[12]\.self_attn\.(q|k)_proj")
case("regex layers on the bare model", "base", target_modules=r"layers\.[12]\.self_attn\.(q|k)_proj")
case("regex layer numbers of two digits", "causal12", target_modules=r".*layers\.1\d?\.mlp\.gate_proj")
case("regex with a look-ahead", target_modules=r".*\.(?!k_proj|q_proj)\w+_proj")
case("regex with a named group", target_modules=r"model\.layers\.(?P<n>\d)\.mlp\.(?P<m>up|gate)_proj")
case("regex with an inline flag", target_modules=r"(?i).*\.Q_PROJ")
case("regex of an exact path", target_modules=r"model\.layers\.0\.self_attn\.q_proj")
case("string without regex signs is a regex too", target_modules="q_proj")
case("regex lm_head", target_modules=r"lm_head|.*\.q_proj")
case("regex that is broken", target_modules=r".*(q_proj")
case("regex and layers_to_transform", target_modules=r".*q_proj", layers_to_transform=[0])
case("regex and layers_pattern", target_modules=r".*q_proj", layers_pattern="layers")
case("layers_to_transform int", target_modules=QV, layers_to_transform=1)
case("layers_to_transform int on the bare model", "base", target_modules=QV, layers_to_transform=1)
case("layers_to_transform list", target_modules=QV, layers_to_transform=[0, 2])
case("layers_to_transform list on the bare model", "base", target_modules=QV, layers_to_transform=[0, 2])
case("layers_to_transform 1 is not 11", "causal12", target_modules=["q_proj"], layers_to_transform=[1, 10])
case("layers_to_transform empty list", target_modules=QV, layers_to_transform=[])
case("layers_to_transform zero", target_modules=QV, layers_to_transform=0)
case("layers_to_transform out of range", target_modules=QV, layers_to_transform=[7])
case("layers_to_transform does not reach embeddings", target_modules=["q_proj", "embed_tokens"], layers_to_transform=[0])
case("layers_to_transform lets an exact path through", target_modules=["lm_head", "q_proj", "model.layers.2.self_attn.k_proj"], layers_to_transform=[0])
case("layers_pattern", target_modules=QV, layers_to_transform=[1], layers_pattern="layers")
case("layers_pattern on the bare model", "base", target_modules=QV, layers_to_transform=[1], layers_pattern="layers")
case("layers_pattern list", target_modules=QV, layers_to_transform=[1], layers_pattern=["h", "layers"])
case("layers_pattern list, other order", target_modules=QV, layers_to_transform=[1], layers_pattern=["layers", "h"])
case("layers_pattern that is wrong", target_modules=QV, layers_to_transform=[1], layers_pattern="h")
case("layers_pattern empty", target_modules=QV, layers_to_transform=[1], layers_pattern="")
case("layers_pattern without layers_to_transform", target_modules=QV, layers_pattern="layers")
case("layers_pattern of gpt2", "gpt2", target_modules=["c_attn"], layers_to_transform=[1], layers_pattern="h")
case("exclude list", target_modules=ATTN, exclude_modules=["k_proj"])
case("exclude full path", target_modules=ATTN, exclude_modules=["model.layers.0.self_attn.q_proj"])
case("exclude is by suffix, not by parent", target_modules=ATTN, exclude_modules=["self_attn"])
case("exclude regex", target_modules=ATTN, exclude_modules=r".*layers\.0.*")
case("exclude regex is a full match", target_modules=ATTN, exclude_modules=r"layers\.0")
case("exclude beats an exact path", target_modules=["model.layers.0.self_attn.q_proj", "v_proj"], exclude_modules=["q_proj"])
case("exclude nothing that is there", target_modules=QV, exclude_modules=["query"])
case("exclude all targets", target_modules=["q_proj"], exclude_modules=["q_proj"])
case("exclude with a regex target", target_modules=r".*_proj", exclude_modules=["up_proj", "gate_proj", "down_proj"])
case("modules_to_save lm_head", target_modules=QV, modules_to_save=["lm_head"])
case("modules_to_save embedding on a tied model", "tied", target_modules=QV, modules_to_save=["embed_tokens"])
case("modules_to_save beats a target", target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"])
case("modules_to_save names a parent", target_modules=["q_proj", "up_proj"], modules_to_save=["model.layers.1.mlp"])
case("modules_to_save two segments", target_modules=["q_proj", "up_proj"], modules_to_save=["0.self_attn"])
case("modules_to_save covers all targets", target_modules=["q_proj"], modules_to_save=["q_proj"])
case("modules_to_save of something absent", target_modules=QV, modules_to_save=["classifier"])
case("modules_to_save norm", target_modules=QV, modules_to_save=["norm"])
case("rank_pattern by suffix", target_modules=ATTN, r=4, rank_pattern={"q_proj": 2, "v_proj": 6})
case("rank_pattern by full path", target_modules=QV, r=4, rank_pattern={"model.layers.1.self_attn.q_proj": 16})
case("rank_pattern by regex", target_modules=QV, r=4, rank_pattern={r"layers\.[01]\..*v_proj": 3})
case("rank_pattern: the first key wins", target_modules=QV, r=4, rank_pattern={"q_proj": 2, r"model\.layers\.1\.self_attn\.q_proj": 16})
case("rank_pattern: the first key wins, other order", target_modules=QV, r=4, rank_pattern={r"model\.layers\.1\.self_attn\.q_proj": 16, "q_proj": 2})
case("rank_pattern with a caret", target_modules=QV, r=4, rank_pattern={r"^model\.layers\.0\.self_attn\.q_proj": 5, r"^layers\.1\.self_attn\.q_proj": 7})
case("rank_pattern with a caret on the bare model", "base", target_modules=QV, r=4, rank_pattern={r"^layers\.1\.self_attn\.q_proj": 7})
case("rank_pattern starts at a dot", target_modules=QV, r=4, rank_pattern={"proj": 5, "_proj": 6, r"\w_proj": 7})
case("rank_pattern names a parent", target_modules=QV, r=4, rank_pattern={"self_attn": 5, r"layers\.2": 6})
case("rank_pattern with alternatives", target_modules=ATTN, r=4, rank_pattern={"q_proj|k_proj": 1, r"layers\.0\.self_attn\.(v|o)_proj": 3})
case("rank_pattern unescaped dot", "causal12", target_modules=["q_proj"], r=4, rank_pattern={"layers.1.self_attn.q_proj": 9})
case("alpha_pattern", target_modules=QV, r=4, lora_alpha=8, alpha_pattern={"v_proj": 32})
case("alpha_pattern and rank_pattern by different keys", target_modules=QV, r=4, lora_alpha=8, rank_pattern={r"layers\.0\..*": 2, "v_proj": 3},
     alpha_pattern={r".*\.2\..*": 1, "self_attn.q_proj": 5})
case("rslora with patterns", target_modules=QV, r=4, lora_alpha=8, use_rslora=True, rank_pattern={"q_proj": 16}, alpha_pattern={"v_proj": 3})
case("alpha that is no whole number", target_modules=["q_proj"], r=4, lora_alpha=6.5)
case("pattern keys that match nothing", target_modules=QV, r=4, rank_pattern={"k_proj": 2}, alpha_pattern={"up_proj": 1})
case("rank_pattern zero", target_modules=QV, r=4, rank_pattern={"q_proj": 0})
case("rank zero", target_modules=QV, r=0)
case("rank larger than the matrix", target_modules=["k_proj"], r=64)
case("dropout out of range", target_modules=["q_proj"], lora_dropout=1.5)
case("bias value that is unknown", target_modules=["q_proj"], bias="some")
case("lora_bias with dora", target_modules=["q_proj"], lora_bias=True, use_dora=True)


def kind(m):
    return "Linear" if isinstance(m, torch.nn.Linear) else "Conv1D" if isinstance(m, Conv1D) else \
        "Embedding" if isinstance(m, torch.nn.Embedding) else "other"


def main():
    a = arguments(__doc__)
    torch.manual_seed(0)
    models = {}
    for name, make in MODELS.items():
        m = make()
        head = getattr(m, "get_output_embeddings", lambda: None)()
        models[name] = {"modules": [[n, kind(x)] for n, x in m.named_modules() if n],
                        "head": next((n for n, x in m.named_modules() if x is head), None) if head is not None else None,
                        "tied": bool(head is not None and m.config.tie_word_embeddings)}
    records = []
    for name, model, config in C:
        record = {"name": name, "model": model, "config": config}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                m = get_peft_model(MODELS[model](), LoraConfig(**config)).base_model.model
                record["matched"] = {n: [x.r["default"], x.lora_alpha["default"], x.scaling["default"]]
                                     for n, x in m.named_modules() if isinstance(x, LoraLayer)}
                record["saved"] = [n for n, x in m.named_modules() if isinstance(x, AuxiliaryTrainingWrapper)]
                record["warnings"] = sorted({str(w.message).split("\n")[0] for w in caught if "deprecated" not in str(w.message)})
            except Exception as e:
                record |= {"error": type(e).__name__, "message": str(e)}
        records.append(record)
    head = {"provenance": provenance(__file__, None, "exact"), "models": models}
    path = a.out / "lora" / "targets.json"
    save_records(path, head, records)
    print(len(records), "cases,", sum("error" in r for r in records), "refused")
    for r in records:
        print("-", r["name"], "|", (r["error"] + ": " + r["message"][:150]) if "error" in r else (len(r["matched"]), r["saved"], [w[:90] for w in r["warnings"]]))


if __name__ == "__main__":
    main()

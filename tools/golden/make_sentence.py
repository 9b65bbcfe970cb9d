"""Writes sentence/vectors.json: vectors of `SentenceTransformer.encode` for settings of sentence-transformers beside one tiny BERT,
and the messages of Python where it refuses them. Run make_families.py and make_tokenizers.py first.

files        what every directory has besides the weights: the golden families/bert, whose table of embeddings has more rows here,
             and tokenizer/bert.json
table        rows of the embeddings, each the row `i % (rows in the golden)` of the golden's table times (1 + i / 1000)
cases[i]     name; files: contents by name, over `files`; vectors of `sentences`
"""
import json
import pathlib
import tempfile

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from common import PACKAGES, arguments, provenance, save_records

SENTENCES = ["The CAT sat on the mat and went away to eat some more", "HÉLLO [SEP] World", "a", "query: the cat"]
TABLE = "embeddings.word_embeddings.weight"


def module(kind, path):
    return {"idx": 0, "name": kind, "path": path, "type": f"sentence_transformers.models.{kind}"}


def pooling(*modes, **more):
    names = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
             "weightedmean": "weightedmean_tokens", "lasttoken": "lasttoken"}
    return {"word_embedding_dimension": 32} | {f"pooling_mode_{n}": m in modes for m, n in names.items()} | more


MODULES = [module("Transformer", ""), module("Pooling", "1_Pooling")]
NORMALIZED = [*MODULES, module("Normalize", "2_Normalize")]


def cases(tokenizer):
    """Yields a name and files by name."""
    mean, prompts = {"1_Pooling/config.json": pooling("mean")}, {"query": "query: ", "none": ""}
    cased = tokenizer | {"normalizer": tokenizer["normalizer"] | {"lowercase": False}}
    short = tokenizer | {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}}
    for mode in ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"):
        yield f"pooling {mode}", {"1_Pooling/config.json": pooling(mode)}
    yield "pooling of two", {"1_Pooling/config.json": pooling("mean", "cls")}
    yield "pooling of three, in an order", {"1_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": ["lasttoken", "weightedmean", "max"]}}
    yield "pooling without a mode", {"1_Pooling/config.json": pooling()}
    yield "normalised", mean | {"modules.json": NORMALIZED}
    yield "two, normalised", {"1_Pooling/config.json": pooling("mean", "max"), "modules.json": NORMALIZED}
    yield "fewer numbers", mean | {"modules.json": NORMALIZED, "config_sentence_transformers.json": {"truncate_dim": 8}}
    yield "prompts without a default", mean | {"config_sentence_transformers.json": {"prompts": prompts}}
    yield "default prompt", mean | {"config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": "query"}}
    yield "default prompt, empty", mean | {"config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": "none"}}
    yield "default prompt, not pooled, of no use", {"1_Pooling/config.json": pooling("mean", include_prompt=False), "config_sentence_transformers.json": {"prompts": prompts}}
    yield "prompt and length", mean | {"config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": "query"}, "sentence_bert_config.json": {"max_seq_length": 9}}
    yield "cased", mean | {"tokenizer.json": cased}
    yield "lower case", mean | {"tokenizer.json": cased, "sentence_bert_config.json": {"max_seq_length": 40, "do_lower_case": True}}
    yield "lower case, another file", mean | {"tokenizer.json": cased, "sentence_roberta_config.json": {"do_lower_case": True, "max_seq_length": 10}}
    yield "length", mean | {"sentence_bert_config.json": {"max_seq_length": 8, "do_lower_case": False}}
    yield "length null", mean | {"sentence_bert_config.json": {"max_seq_length": None}}
    yield "length of the tokenizer", mean | {"sentence_bert_config.json": {"max_seq_length": None}, "tokenizer_config.json": {"model_max_length": 7}}
    yield "length of the tokenizer, no settings", mean | {"tokenizer_config.json": {"model_max_length": 6}}
    yield "length of both", mean | {"sentence_bert_config.json": {"max_seq_length": 12}, "tokenizer_config.json": {"model_max_length": 6}}
    yield "length huge", mean | {"tokenizer_config.json": {"model_max_length": 10 ** 30}}
    yield "length in tokenizer.json", mean | {"tokenizer.json": short, "sentence_bert_config.json": {"max_seq_length": 9}}
    yield "cut at the left", mean | {"tokenizer_config.json": {"model_max_length": 7, "truncation_side": "left"}}


def main():
    out = arguments(__doc__).out
    tokenizer = json.loads((out / "tokenizer" / "bert.json").read_text(encoding="utf-8"))
    config = json.loads((out / "families" / "bert" / "config.json").read_text(encoding="utf-8"))
    weights = load_file(out / "families" / "bert" / "model.safetensors")
    rows = max(tokenizer["model"]["vocab"].values()) + 1
    i = torch.arange(rows)
    weights[TABLE] = weights[TABLE][i % len(weights[TABLE])] * (1 + i / 1000)[:, None]
    shared = {"config.json": config | {"vocab_size": rows}, "modules.json": MODULES, "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}}
    records = []
    for name, files in cases(tokenizer):
        files = {f: c | shared[f] if f == "tokenizer_config.json" else c for f, c in files.items()}
        with tempfile.TemporaryDirectory() as d:
            save_file(weights, pathlib.Path(d) / "model.safetensors", {"format": "pt"})
            for file, content in (shared | {"tokenizer.json": tokenizer} | files).items():
                path = pathlib.Path(d) / file
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(content), encoding="utf-8")
            vectors = SentenceTransformer(d, device="cpu").encode(SENTENCES)
        # tokenizer.json is named by what differs in it.
        if "tokenizer.json" in files:
            files["tokenizer.json"] = {k: v for k, v in files["tokenizer.json"].items() if v != tokenizer[k]}
        records.append({"name": name, "files": files, "vectors": [[float(f"{x:.7g}") for x in v] for v in vectors.tolist()]})
    prov = provenance(__file__, None, 1e-5, [*PACKAGES, "sentence-transformers"], measure="max|a-b| of each vector")
    save_records(out / "sentence" / "vectors.json", {"provenance": prov, "files": shared, "table": rows, "sentences": SENTENCES}, records)
    print(len(records), "cases")


if __name__ == "__main__":
    main()

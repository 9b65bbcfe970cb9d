"""Writes tokenizer/special-tokens.json: what transformers' AutoTokenizer makes of the files beside a vocabulary: the roles of special
tokens, the tokens around a text, added tokens, clean-up. The vocabulary is a few characters, in tokenizer.json or in vocab.json and
merges.txt (vocab.txt).

tokenizers   tokenizer.json by name
cases[i]     name; files: contents by name, a string for a name of `tokenizers`; class: the Python class; roles: token ids, only of tokens
             that the vocabulary or the files name (transformers also invents tokens for its class's defaults); ids of each of `texts`,
             and what decode(ids, skip_special_tokens=True) gives
"""
import json
import pathlib
import tempfile
import warnings

from transformers import AutoTokenizer

from common import arguments, provenance, save_records

TEXTS = ["hi", "a </s>b<|im_end|>", "<x>y", "do n't ."]
BPE = ["h", "i", "a", "b", "x", "y", "d", "o", "n", "t", "'", ".", "s", "Ġ", "<", ">", "/", "|", "_", "m", "e"]
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "<|endoftext|>", "<|padding|>", "<|im_end|>"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hi", "a", "b", "x", "y", "do", "n", "t", "s", "im", "end", "'", ".", "<", ">", "/", "|", "_"]


def added(content, index=None, **more):
    token = {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} | more
    return token if index is None else {"id": index} | token


def template(bos, eos, ids):
    special = lambda t: {"SpecialToken": {"id": t, "type_id": 0}}
    text = lambda name: {"Sequence": {"id": name, "type_id": 0}}
    before, after = [special(bos)] if bos else [], [special(eos)] if eos else []
    return {"type": "TemplateProcessing", "single": before + [text("A")] + after, "pair": before + [text("A")] + after + before + [text("B")] + after,
            "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in (bos, eos) if t}}


def byte_level(special=SPECIAL, in_vocabulary=(), bos=None, eos=None, shown=False):
    tokens = [*BPE, *in_vocabulary]
    ids = {t: i for i, t in enumerate([*tokens, *special])}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [added(t, ids[t], special=not (shown and t == "<|im_end|>")) for t in special],
            "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "post_processor": template(bos, eos, ids) if bos or eos else None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
                      "byte_fallback": False, "ignore_merges": False, "vocab": ids, "merges": []}}


def word_piece(cleanup):
    ids = {t: i for i, t in enumerate(WORDS)}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [added(t, ids[t]) for t in WORDS[:5]],
            "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
            "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": template("[CLS]", "[SEP]", ids),
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": cleanup},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": ids}}


TOKENIZERS = {"plain": byte_level(), "bos": byte_level(bos="<s>"), "both": byte_level(bos="<s>", eos="</s>"), "few": byte_level(["<s>"], ["</s>", "<x>", "<|im_end|>"]),
              "shown": byte_level(shown=True), "words": word_piece(True), "spaced": word_piece(False)}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
ROLES = FAST | {"bos_token": "<s>", "eos_token": "</s>"}


def cases():
    """Yields a name, the files, and config.json's model_type."""
    flags = {"none": {}, "bos false": {"add_bos_token": False}, "bos true": {"add_bos_token": True}, "bos null": {"add_bos_token": None},
             "eos false": {"add_eos_token": False}, "both true": {"add_bos_token": True, "add_eos_token": True}}
    for name, more in flags.items():
        for tokenizer in ("plain", "bos", "both"):
            yield f"flags {name}, {tokenizer}", {"tokenizer.json": tokenizer, "tokenizer_config.json": ROLES | more}, "llama"
        yield f"flags {name}, vocab.json of GPT-2", {"vocab.json": None, "merges.txt": "#version: 0.2\n", "tokenizer_config.json": more}, "gpt2"
        yield f"flags {name}, vocab.json of RoBERTa", {"vocab.json": None, "merges.txt": "#version: 0.2\n", "tokenizer_config.json": more}, "roberta"
        yield f"flags {name}, vocab.txt", {"vocab.txt": None, "tokenizer_config.json": more}, "bert"
    for cls in ("LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "GPTNeoXTokenizerFast", "Qwen2Tokenizer", "RobertaTokenizerFast", "BloomTokenizerFast"):
        yield f"class {cls}", {"tokenizer.json": "both", "tokenizer_config.json": {"tokenizer_class": cls, "add_bos_token": False}}, "llama"
    for kind in ("gpt2", "gpt_neox", "roberta", "llama", "mistral", "qwen2", "qwen3"):
        for name, files in {"no config": {}, "config without roles": {"tokenizer_config.json": {"model_max_length": 9}}, "fast class": {"tokenizer_config.json": FAST},
                            "class of GPT-2": {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"}}}.items():
            yield f"roles of {kind}, {name}", {"tokenizer.json": "plain"} | files, kind
    for kind in ("bert", "distilbert"):
        yield f"roles of {kind}", {"tokenizer.json": "words"}, kind
    yield "roles, null", {"tokenizer.json": "plain", "tokenizer_config.json": {"eos_token": None, "bos_token": "<s>"}}, "gpt2"
    yield "roles, map", {"tokenizer.json": "plain", "tokenizer_config.json": FAST, "special_tokens_map.json": {"eos_token": "</s>", "bos_token": added("<s>")}}, "llama"
    yield "roles, map and config", {"tokenizer.json": "plain", "tokenizer_config.json": FAST | {"eos_token": "<|im_end|>"}, "special_tokens_map.json": {"eos_token": "</s>"}}, "llama"
    yield "roles, map and config with tokens", {"tokenizer.json": "plain", "tokenizer_config.json": FAST | {"eos_token": "<|im_end|>", "added_tokens_decoder": {}},
                                                "special_tokens_map.json": {"eos_token": "</s>", "pad_token": "<pad>"}}, "llama"
    yield "roles, map over the class", {"tokenizer.json": "plain", "special_tokens_map.json": {"eos_token": "</s>", "pad_token": "<pad>"}}, "gpt2"
    few = lambda **config: {"tokenizer.json": "few", "tokenizer_config.json": FAST | config}
    yield "role in the vocabulary", few(eos_token="</s>"), "llama"
    yield "role with flags", few(eos_token=added("</s>", lstrip=True) | {"__type": "AddedToken"}), "llama"
    yield "role in no vocabulary", few(eos_token="<nope>"), "llama"
    yield "role without use", few(cls_token="<x>"), "llama"
    yield "role of a token that is shown", {"tokenizer.json": "shown", "tokenizer_config.json": FAST | {"eos_token": "<|im_end|>"}}, "llama"
    yield "token that is shown", {"tokenizer.json": "shown", "tokenizer_config.json": FAST}, "llama"
    yield "additional, list", few(additional_special_tokens=["<|im_end|>", "<x>"]), "llama"
    yield "additional, new", few(additional_special_tokens=["<new>", "<x>", "</s>"]), "llama"
    yield "extra, dicts", few(extra_special_tokens=[added("<x>") | {"__type": "AddedToken"}]), "llama"
    yield "extra, by name", few(extra_special_tokens={"image_token": "<x>"}), "llama"
    yield "extra over additional", few(additional_special_tokens=["<x>"], extra_special_tokens=["<|im_end|>"]), "llama"
    yield "own role", few(image_token="<x>"), "llama"
    yield "additional, map", few() | {"special_tokens_map.json": {"additional_special_tokens": ["<x>", "<|im_end|>"]}}, "llama"
    yield "additional, map and config", few(additional_special_tokens=["<x>"]) | {"special_tokens_map.json": {"additional_special_tokens": ["<|im_end|>"]}}, "llama"
    plain = lambda decoder: {"tokenizer.json": "plain", "tokenizer_config.json": FAST | {"added_tokens_decoder": decoder}}
    n = len(BPE) + len(SPECIAL)
    yield "decoder, next id", plain({str(n): added("<x>")}), "llama"
    yield "decoder, far id", plain({str(n + 50): added("<x>", special=False)}), "llama"
    yield "decoder, two in another order", plain({str(n + 1): added("<x>"), str(n): added("y")}), "llama"
    yield "decoder, other flags", plain({str(n - 1): added("<|im_end|>", lstrip=True), str(n - 7): added("</s>", lstrip=True, rstrip=True)}), "llama"
    yield "decoder, not special", plain({str(n - 1): added("<|im_end|>", special=False)}), "llama"
    yield "decoder, special", {"tokenizer.json": "shown", "tokenizer_config.json": FAST | {"added_tokens_decoder": {str(n - 1): added("<|im_end|>")}}}, "llama"
    yield "added_tokens.json", {"tokenizer.json": "plain", "tokenizer_config.json": FAST, "added_tokens.json": {"<x>": n}}, "llama"
    yield "added_tokens.json and decoder", plain({}) | {"added_tokens.json": {"<x>": n}}, "llama"
    yield "added_tokens.json, vocab.json", {"vocab.json": None, "merges.txt": "#version: 0.2\n", "added_tokens.json": {"<x>": n}}, "gpt2"
    for tokenizer in ("plain", "words", "spaced"):
        for value in (True, False, None):
            yield f"clean-up {value}, {tokenizer}", {"tokenizer.json": tokenizer, "tokenizer_config.json": FAST | {"clean_up_tokenization_spaces": value}}, "llama"


def main():
    out = arguments(__doc__).out
    warnings.simplefilter("ignore")
    records = []
    for name, files, kind in cases():
        if "vocab.json" in files:
            files["vocab.json"] = {t: i for i, t in enumerate([*BPE, *SPECIAL])}
        if "vocab.txt" in files:
            files["vocab.txt"] = "\n".join(WORDS) + "\n"
        files["config.json"] = {"model_type": kind}
        with tempfile.TemporaryDirectory() as d:
            for file, content in files.items():
                content = TOKENIZERS[content] if file == "tokenizer.json" else content
                (pathlib.Path(d) / file).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
            t = AutoTokenizer.from_pretrained(d)
        named = json.dumps(files) + json.dumps(TOKENIZERS[files["tokenizer.json"]] if "tokenizer.json" in files else {})
        roles = {r: i for r in ("bos", "eos", "pad", "unk") if (i := getattr(t, f"{r}_token_id")) is not None and json.dumps(getattr(t, f"{r}_token")) in named + json.dumps(WORDS)}
        ids = [t(x)["input_ids"] for x in TEXTS]
        records.append({"name": name, "files": files, "class": type(t).__name__, "roles": roles, "ids": ids, "decoded": [t.decode(i, skip_special_tokens=True) for i in ids]})
    save_records(out / "tokenizer" / "special-tokens.json", {"provenance": provenance(__file__, None, "exact"), "texts": TEXTS, "tokenizers": TOKENIZERS}, records)
    print(len(records), "cases")


if __name__ == "__main__":
    main()

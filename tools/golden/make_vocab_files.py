"""Writes tokenizer/files/NAME/: vocabularies in the layout of old checkpoints, without tokenizer.json, and NAME.golden.json as
make_tokenizers.py describes it, by transformers' tokenizer of that class (run make_corpus.py and make_tokenizers.py first).

gpt2, roberta   vocab.json and merges.txt, byte-level BPE trained on the corpus, with that family's special tokens
words.json      of gpt2 and roberta: pieces of rows of words (is_split_into_words), and the word of each, null for special tokens; with
                add_prefix_space, without which these classes reject words
bert            vocab.txt of tokenizer/bert.json, cased, [PAD] and the other special tokens at the same ids
"""
import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertTokenizerFast, GPT2TokenizerFast, RobertaTokenizerFast

from common import arguments, provenance, save_json, save_records
from make_minilm import WORDS
from make_tokenizers import golden

SPECIALS = {"gpt2": ["<|endoftext|>"], "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]}


def main():
    root = arguments(__doc__).out / "tokenizer"
    corpus = [json.loads(x) for x in (root / "corpus.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    for name, cls in {"gpt2": GPT2TokenizerFast, "roberta": RobertaTokenizerFast, "bert": BertTokenizerFast}.items():
        out = root / "files" / name
        out.mkdir(parents=True, exist_ok=True)
        if name == "bert":
            vocab = json.loads((root / "bert.json").read_text(encoding="utf-8"))["model"]["vocab"]
            (out / "vocab.txt").write_text("".join(w + "\n" for w in sorted(vocab, key=vocab.get)), encoding="utf-8", newline="\n")
            save_json(out / "tokenizer_config.json", {"do_lower_case": False})
        else:
            t = Tokenizer(models.BPE())
            t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=420, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=SPECIALS[name] if name == "roberta" else []))
            model = json.loads(t.to_str())["model"]
            vocab = model["vocab"] | ({"<|endoftext|>": len(model["vocab"])} if name == "gpt2" else {})
            (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
            (out / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in model["merges"]), encoding="utf-8", newline="\n")
        save_json(out / "config.json", {"model_type": name})
        tokenizer = cls.from_pretrained(out).backend_tokenizer
        if name != "bert":
            of = cls.from_pretrained(out, add_prefix_space=True)
            rows = [(words, of(words, is_split_into_words=True)) for words in [*WORDS, ["see", "<mask>", "there"]]]
            records = [{"words": words, "ids": e.input_ids, "words_of": e.word_ids()} for words, e in rows]
            save_records(out / "words.json", {"provenance": provenance(__file__, None, "exact")}, records)
        golden(tokenizer, corpus, out / "golden.json", provenance(__file__, None, "exact"))


if __name__ == "__main__":
    main()

"""Encodes texts with Python's tokenizers, in one thread, one by one: half of them to warm up, the other half in time.

  --tokenizer FILE   tokenizer.json
  --texts FILE       JSON list of texts
  --out FILE         {"ids": ids of each text, special tokens left out}
"""
import argparse
import json
import os
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
from tokenizers import Tokenizer


def main():
    parser = argparse.ArgumentParser()
    for name in ("--tokenizer", "--texts", "--out"):
        parser.add_argument(name)
    a = parser.parse_args()
    with open(a.texts) as f:
        texts = json.load(f)
    tokenizer = Tokenizer.from_file(a.tokenizer)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    half = len(texts) // 2
    ids = [encode(text) for text in texts[:half]]
    start = time.process_time()
    ids += [encode(text) for text in texts[half:]]
    seconds = time.process_time() - start
    with open(a.out, "w") as f:
        json.dump({"ids": ids}, f)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()

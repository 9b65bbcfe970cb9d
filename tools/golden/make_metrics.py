"""Writes metrics/metrics.json: the metrics of random answers by seqeval, SQuAD's evaluation, scikit-learn and SciPy.

  chunks   {tags, chunks: [[type, first, last]]}        seqeval's get_entities, default mode, of tags in several schemes
  entities {wanted, said, f1, precision, recall}        seqeval over many rows (micro)
  answers  {said, wanted, exact, f1}                    SQuAD's evaluate-v2.0.py, whose functions are copied below
  classes  {wanted, said, macro, confusion}             scikit-learn
  several  {wanted, said, micro, macro}                 scikit-learn, several labels in each row
  numbers  {x, y, pearson, spearman}                    SciPy, with ties
"""
import collections
import random
import re
import string

from scipy import stats
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from sklearn import metrics

from common import arguments, provenance, save_records

SEED = 1703
TAGS = ["O", "B-A", "I-A", "E-A", "S-A", "B-B-x", "I-B-x", "B-C"]
IOB = ["O", "B-A", "I-A", "B-B", "I-B"]
WORDS = ["the", "a", "An", "Ada", "river", "ünit", "x-ray", "(of)", "42,", "“mill”", "été", "the-", "$5"]


def normalize_answer(s):
    s = "".join(c for c in s.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())


def compute_f1(wanted, said):
    w, s = normalize_answer(wanted).split(), normalize_answer(said).split()
    same = sum((collections.Counter(w) & collections.Counter(s)).values())
    if not w or not s:
        return float(w == s)
    return 2 * same / (len(w) + len(s)) if same else 0.0


def main():
    a = arguments(__doc__)
    r = random.Random(SEED)
    some = lambda words, least, most: [r.choice(words) for _ in range(r.randint(least, most))]
    records = []
    for _ in range(120):
        tags = some(TAGS, 1, 9)
        records.append({"kind": "chunks", "tags": tags, "chunks": [list(c) for c in get_entities(tags)]})
    for _ in range(4):
        wanted = [some(IOB, 1, 8) for _ in range(40)]
        said = [[t if r.random() < 0.7 else r.choice(IOB) for t in row] for row in wanted]
        records.append({"kind": "entities", "wanted": wanted, "said": said, "f1": float(f1_score(wanted, said)),
                        "precision": float(precision_score(wanted, said)), "recall": float(recall_score(wanted, said))})
    for _ in range(120):
        said, wanted = " ".join(some(WORDS, 0, 5)), [" ".join(some(WORDS, 1, 4)) for _ in range(r.randint(0, 3))]
        given = [w for w in wanted if normalize_answer(w)] or [""]
        records.append({"kind": "answers", "said": said, "wanted": wanted,
                        "exact": max(int(normalize_answer(w) == normalize_answer(said)) for w in given),
                        "f1": max(compute_f1(w, said) for w in given)})
    for classes in (2, 5):
        wanted = [r.randrange(classes) for _ in range(60)]
        said = [w if r.random() < 0.6 else r.randrange(classes) for w in wanted]
        records.append({"kind": "classes", "classes": classes, "wanted": wanted, "said": said,
                        "macro": float(metrics.f1_score(wanted, said, average="macro")),
                        "confusion": metrics.confusion_matrix(wanted, said, labels=range(classes)).tolist()})
    wanted = [[r.randint(0, 1) for _ in range(4)] for _ in range(40)]
    said = [[v if r.random() < 0.8 else 1 - v for v in row] for row in wanted]
    records.append({"kind": "several", "wanted": wanted, "said": said,
                    "micro": float(metrics.f1_score(wanted, said, average="micro")), "macro": float(metrics.f1_score(wanted, said, average="macro"))})
    for _ in range(3):
        x = [r.randint(0, 9) / 2 for _ in range(30)]
        y = [v + r.randint(-4, 4) / 2 for v in x]
        records.append({"kind": "numbers", "x": x, "y": y, "pearson": float(stats.pearsonr(x, y).statistic), "spearman": float(stats.spearmanr(x, y).statistic)})
    prov = provenance(__file__, SEED, 1e-12, ["seqeval", "scikit-learn", "scipy", "numpy"])
    save_records(a.out / "metrics" / "metrics.json", {"provenance": prov}, records)


if __name__ == "__main__":
    main()

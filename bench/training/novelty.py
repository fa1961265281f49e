"""Novelty of texts: how well it tells unfamiliar texts from texts like those of training, beside scores of the head.

    python -m bench.training.novelty DATA --bundle BUNDLE --output bench/results/novelty.json
    python -m bench.training.novelty DATA --bundle BUNDLE --rows 1000 --unfamiliar 200 --output /tmp/quick.json

DATA is a folder with data sets; BUNDLE is any bundle, of which only the embedding is used. A logistic regression on the
embeddings of AG News, or of the intents of HWU64 but a quarter of them, is the head. Unfamiliar texts are reviews,
questions, spoken commands, ten other languages, noise, and the intents that were left out. Scores: the novelty that
polyhead-train fits; its distance to the nearest centroid alone; the negative maximum of the softmax (Hendrycks and
Gimpel, arXiv 1610.02136); and the energy (Liu et al., arXiv 2010.03759).

AUROC is the probability that an unfamiliar text scores higher than a test text. FPR at 95 % is the share of unfamiliar
texts that score below the 95th percentile of the test texts. *Cost* compares the time of a novelty with that of the
forward pass, per text of a full batch, on one core.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray
from polyhead_server.engines import open_engine
from polyhead_server.engines.collate import pad
from polyhead_server.inference.novelty import Novelty
from polyhead_training.evaluation.novelty import NoveltyModel, fit_novelty
from polyhead_training.evaluation.probabilities import probabilities
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from bench.harness import results
from bench.harness import texts as files
from bench.harness.arguments import add_output_flag, make_parser

from .frozen_embeddings import Embedder, LinearHead, fit_head

Floats = NDArray[np.floating[Any]]
Score = Callable[[Floats], Floats]
UNFAMILIAR = {
    "reviews": "blitzer_joint_dev.jsonl.gz",
    "questions": "trec_train.jsonl.gz",
    "commands": "snips_dev.jsonl.gz",
    "other languages": "multilingual.jsonl.gz",
}
LEFT_OUT = "left-out intents"
# Texts of the batch whose forward pass is timed, a full one of the server, and tokens of each.
_COST_TEXTS, _COST_TOKENS = 16, 32
_ROUNDS = 50


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--bundle", type=Path, required=True, help="bundle with the variants fp32 and int8")
    parser.add_argument("--variant", default="fp32", help="variant that embeds the texts (default: fp32)")
    parser.add_argument("--rows", type=int, default=4000, help="training rows of each set (default: 4000)")
    parser.add_argument("--unfamiliar", type=int, default=500, help="unfamiliar texts of each kind (default: 500)")
    parser.add_argument("--work-dir", type=Path, default=Path("build/embeddings"), help="folder of the embeddings")
    add_output_flag(parser, Path("bench/results/novelty.json"))
    arguments = parser.parse_args()
    embed = Embedder(arguments.bundle, arguments.variant, arguments.work_dir)
    runs = [
        run
        for name, (known, left_out) in known_sets(arguments.data).items()
        for run in measure(name, known, unfamiliar_texts(arguments, known, left_out), embed, arguments.rows)
    ]
    report = {
        **results.provenance(("polyhead", "onnxruntime", "scikit-learn")),
        "variant": arguments.variant,
        "cost": cost(arguments.bundle, arguments.variant),
        "runs": runs,
    }
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)


def known_sets(folder: Path) -> dict[str, tuple[list[dict[str, Any]], list[str]]]:
    """Returns the rows of each training set, in random order, and the texts of labels that were left out of it."""
    rng = random.Random(0)
    news = files.read(folder / "agnews_train.jsonl.gz")
    intents = [row for part in ("train", "dev") for row in files.read(folder / f"hwu64_{part}.jsonl.gz")]
    labels = sorted({row["label"] for row in intents})
    left_out = set(rng.sample(labels, len(labels) // 4))
    known = [row for row in intents if row["label"] not in left_out]
    rng.shuffle(news)
    rng.shuffle(known)
    return {"agnews": (news, []), "hwu64": (known, [row["text"] for row in intents if row["label"] in left_out])}


def unfamiliar_texts(
    arguments: Any, known: Sequence[Mapping[str, Any]], left_out: Sequence[str]
) -> dict[str, list[str]]:
    """Returns unfamiliar texts of each kind, drawn at random."""
    rng = random.Random(1)
    found = {name: files.read_texts(arguments.data / source) for name, source in UNFAMILIAR.items()}
    words = [word for row in known[:1000] for word in row["text"].split()]
    letters = "abcdefghijklmnopqrstuvwxyz     "
    found["letters"] = ["".join(rng.choices(letters, k=rng.randint(20, 150))) for _ in range(arguments.unfamiliar)]
    found["shuffled words"] = [" ".join(rng.choices(words, k=rng.randint(5, 30))) for _ in range(arguments.unfamiliar)]
    if left_out:
        found[LEFT_OUT] = list(left_out)
    return {name: rng.sample(texts, min(arguments.unfamiliar, len(texts))) for name, texts in found.items()}


def measure(
    name: str, rows: Sequence[Mapping[str, Any]], others: Mapping[str, Sequence[str]], embed: Embedder, count: int
) -> list[dict[str, Any]]:
    """Fits head and novelty to the first rows; returns the figures of each kind of unfamiliar texts."""
    used = rows[: 2 * count]
    vectors = embed([row["text"] for row in used])
    _, targets = np.unique([row["label"] for row in used], return_inverse=True)
    train, validation, test = np.split(np.arange(len(used)), [count, count + (len(used) - count) // 2])
    head = fit_head(vectors[train], targets[train])
    scores = scores_of(fit_novelty(vectors[train], vectors[validation]), head)
    found = []
    for kind, texts in others.items():
        strange = embed(texts)
        figures = {score: detection(of(vectors[test]), of(strange)) for score, of in scores.items()}
        found.append({"set": name, "unfamiliar": kind, "texts": len(texts), **figures})
    return found


def scores_of(novelty: NoveltyModel, head: LinearHead) -> dict[str, Score]:
    """Returns the scores, each of (N, dimensions) embeddings and higher for unfamiliar texts."""
    centroids = novelty.matrix[: len(novelty.matrix) - len(novelty.variances)]
    nearest = dataclasses.replace(novelty, matrix=centroids, variances=np.zeros(0), noise=1.0)
    return {
        "novelty": novelty.distances,
        "nearest centroid": nearest.distances,
        "maximum softmax": lambda values: -probabilities("softmax", head.logits(np.asarray(values))).max(axis=1),
        "energy": lambda values: -np.asarray(logsumexp(head.logits(np.asarray(values)), axis=1)),
    }


def detection(known: Floats, strange: Floats) -> dict[str, float]:
    """Returns AUROC and the false positive rate at 95 %, from the scores of test texts and of unfamiliar texts."""
    is_strange = np.repeat([0, 1], [len(known), len(strange)])
    accepted = strange <= np.quantile(known, 0.95)
    auroc = roc_auc_score(is_strange, np.concatenate([known, strange]))
    return {"auroc": round(float(auroc), 4), "fpr95": round(float(accepted.mean()), 4)}


def cost(path: Path, variant: str) -> dict[str, float]:
    """Times a forward pass of a batch and the novelty of each of its texts right after it, in microseconds.

    Both are the fastest of many rounds, per text of the batch.
    """
    source = bundle.load(path)
    dimensions = source.manifest.embedding.dimensions
    rng = np.random.default_rng(0)
    described = bundle.Novelty(64, (1.0,) * 32, 0.5, tuple(map(float, range(101))))
    novelty = Novelty(described, rng.normal(0, 0.1, described.shape(dimensions)))
    engine = open_engine(source, "onnx", "cpu", variant)
    batch = pad([[100 + number for number in range(_COST_TOKENS)]] * _COST_TEXTS, source.manifest.pad_token_id)
    times: dict[str, list[float]] = {"forward_pass": [], "novelty": []}
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        embeddings = engine.run(*batch)[0]
        middle = time.perf_counter()
        for row in range(_COST_TEXTS):
            novelty.score(embeddings[row : row + 1])
        times["forward_pass"].append(middle - begin)
        times["novelty"].append(time.perf_counter() - middle)
    engine.close()
    fastest = {f"{name}_us": round(1e6 * min(values) / _COST_TEXTS, 1) for name, values in times.items()}
    share = round(fastest["novelty_us"] / fastest["forward_pass_us"], 4)
    matrix_bytes = 2 * (64 + 32) * dimensions  # float16
    return {"texts": _COST_TEXTS, "tokens": _COST_TOKENS, **fastest, "share": share, "bytes": matrix_bytes}


if __name__ == "__main__":
    main()

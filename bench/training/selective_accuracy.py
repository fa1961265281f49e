"""Promised accuracy of heads that abstain: how often it is kept, and how many texts are answered.

    python -m bench.training.selective_accuracy DATA --bundle BUNDLE --output bench/results/selective_accuracy.json
    python -m bench.training.selective_accuracy DATA --bundle BUNDLE --rows 2000 --seeds 3 --output /tmp/quick.json

DATA is a folder with NAME_*.jsonl.gz of each set; BUNDLE is any bundle, of which only the embedding is used. For each
seed the rows of a set are divided anew: a half trains a logistic regression on the embeddings, a quarter is the
validation on which the threshold is fitted as by polyhead-train, a quarter is the test. The embeddings of the int8
variant are answered by the same head with the same threshold.

A promise counts as kept if the accuracy of the answered test texts is at least the promised one. Where few texts are
answered, that also depends on the chance of the test rows: *refuted* counts the splits in which the whole 95 % interval
of the test is below the promise.

Runs are written as they end, and repeating the command continues where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from polyhead_training.evaluation.calibration import fit_temperature
from polyhead_training.evaluation.selective import Promise, confident_answers, fit_promise, selective_score

from bench.harness import texts as files
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.recorded_runs import RecordedRuns
from bench.report.trust import promise_table

from .frozen_embeddings import Embedder, fit_head

# Files and the field of the label.
SETS = {
    "trec": (("trec_train",), "label"),
    "sst2": (("sst2_train", "sst2_dev"), "sentiment"),
    "agnews": (("agnews_test",), "label"),
    "hwu64": (("hwu64_train", "hwu64_dev"), "label"),
}
ACCURACIES = (0.90, 0.95, 0.98)
CERTAINTY = 0.95
VARIANTS = ("fp32", "int8")


class Rows(NamedTuple):
    """Rows of a set: embeddings by variant, and the (N,) indices of their labels."""

    embeddings: dict[str, NDArray[np.float32]]
    targets: NDArray[np.int64]


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--bundle", type=Path, required=True, help="bundle with the variants fp32 and int8")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="data sets (default: all)")
    parser.add_argument("--seeds", type=int, default=20, help="splits of each set, from seed 0 (default: 20)")
    parser.add_argument("--rows", type=int, help="maximum number of rows of a set, at random (default: all)")
    parser.add_argument("--work-dir", type=Path, default=Path("build/embeddings"), help="folder of the embeddings")
    add_output_flag(parser, Path("bench/results/selective_accuracy.json"))
    arguments = parser.parse_args()
    embedders = {name: Embedder(arguments.bundle, name, arguments.work_dir) for name in VARIANTS}
    recorded = RecordedRuns(arguments.output, {"rows": arguments.rows}, ("polyhead", "scikit-learn"))
    for name in arguments.sets:
        rows = None
        for seed in range(arguments.seeds):
            if not recorded.has(set=name, seed=seed):
                rows = rows or read(arguments.data, name, arguments.rows, embedders)
                for figures in measure(rows, seed):
                    recorded.add({"set": name, "seed": seed}, figures)
    recorded.finish()
    for variant in VARIANTS:
        print(f"{variant}:\n{promise_table(recorded.runs, variant)}")


def read(folder: Path, name: str, limit: int | None, embedders: dict[str, Embedder]) -> Rows:
    """Reads the rows of a set and embeds their texts."""
    sources, field = SETS[name]
    rows = [row for source in sources for row in files.read(folder / f"{source}.jsonl.gz") if row[field] is not None]
    chosen = np.random.default_rng(0).permutation(len(rows))[:limit]
    texts = [rows[index]["text"] for index in chosen]
    _, targets = np.unique([str(rows[index][field]) for index in chosen], return_inverse=True)
    return Rows({variant: embed(texts) for variant, embed in embedders.items()}, targets)


def measure(rows: Rows, seed: int) -> list[dict[str, Any]]:
    """Trains a head on one division of the rows; returns the figures of each promise."""
    order = np.random.default_rng(seed).permutation(len(rows.targets))
    train, validation, test = np.split(order, [len(order) // 2, 3 * len(order) // 4])
    head = fit_head(rows.embeddings["fp32"][train], rows.targets[train])
    logits = head.logits(rows.embeddings["fp32"][validation])
    temperature = fit_temperature("softmax", logits, rows.targets[validation])
    fitted = confident_answers("softmax", logits, rows.targets[validation], temperature)
    found = []
    for accuracy in ACCURACIES:
        promise = fit_promise(fitted, accuracy, CERTAINTY)
        figures: dict[str, Any] = {"promised": accuracy, "rows": len(validation), "met": promise.threshold is not None}
        for variant, embeddings in rows.embeddings.items():
            answers = confident_answers("softmax", head.logits(embeddings[test]), rows.targets[test], temperature)
            figures["all_" + variant] = float(answers.correct.mean())
            if promise.threshold is not None:
                figures[variant] = _on_test(promise, answers)
        found.append(figures)
    return found


def _on_test(promise: Promise, answers: Any) -> dict[str, Any]:
    score = selective_score(promise, answers)
    upper = score.intervals.get("accuracy", [0.0, 1.0])[1]
    return {
        "coverage": score.coverage,
        "accuracy": score.accuracy,
        "kept": score.accuracy is None or score.accuracy >= promise.accuracy,
        "refuted": upper < promise.accuracy,
    }


if __name__ == "__main__":
    main()

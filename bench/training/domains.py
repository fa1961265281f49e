"""Texts of medicine, computer science and finance, and long documents: fine-tuned heads beside a linear SVM on TF-IDF.

    python -m bench.training.domains DATA --output bench/results/domains.json
    python -m bench.training.domains DATA --sets phrasebank --seeds 1 --epochs 1 --rows 200 --output /tmp/quick.json

DATA is a folder with NAME_train.jsonl.gz and NAME_dev.jsonl.gz of each set; the dev rows are the test. Systems:
``SVM``, scikit-learn's LinearSVC on words and pairs of words; ``fine-tuned``, polyhead with all weights, which
truncates long texts; ``fine-tuned on windows``, the same with the windows of each long text as rows. On long documents
the test rows are also read in windows, whose logits are pooled as the server does.

Runs are written as they end, and repeating the command continues where it stopped; commands with other sets, seeds or
systems add theirs to the same file.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# torch reads it once, at import; polyhead-train sets it to the same value.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.inference.windows import spans
from polyhead_training.data.collation import EncodedRows
from polyhead_training.data.dataset import Row
from polyhead_training.data.target_tensors import Targets
from polyhead_training.model import PolyheadModel
from polyhead_training.terminal import format_table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.recorded_runs import RecordedRuns, mean_text

from .head_systems import fine_tune, head_logits
from .head_tasks import HeadSet, Logits, Task, open_task

SETS = {
    "medabstracts": HeadSet("softmax", "label", 256, 4),
    "phrasebank": HeadSet("softmax", "label", 128, 4),
    "phrasebank_sentiment": HeadSet("sigmoid", "sentiment", 128, 4, source="phrasebank"),
    "piboso": HeadSet("softmax", "label", 128, 3),
    "csabstruct": HeadSet("softmax", "label", 128, 3),
    "newsgroups20": HeadSet("softmax", "label", 256, 5),
    "imdb": HeadSet("sigmoid", "sentiment", 256, 2),
}
LONG = {"newsgroups20", "imdb"}
# Windows of a text, as many as a server reads by default.
MAX_WINDOWS = 32
# Characters of a text that are tokenized.
_MAX_CHARACTERS = 10**6


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="data sets (default: all)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="(default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default: 3)")
    parser.add_argument("--rows", type=int, help="maximum number of training rows, at random (default: all)")
    parser.add_argument("--epochs", type=int, help="epochs of fine-tuning (default: by set)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override polyhead's settings"
    )
    parser.add_argument("--work-dir", type=Path, default=Path("build/domains"), help="folder of the runs")
    add_output_flag(parser, Path("bench/results/domains.json"))
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    recorded = RecordedRuns(
        arguments.output, {"rows": arguments.rows, "epochs": arguments.epochs, "overrides": arguments.overrides}
    )
    for seed in range(arguments.seeds):
        for name in arguments.sets:
            head_set = SETS[name]._replace(epochs=arguments.epochs or SETS[name].epochs)
            for system in arguments.systems:
                key = {"set": name, "system": system, "seed": seed}
                # The SVM has no random choice.
                if recorded.has(**key) or (system == SVM and seed) or (system == ON_WINDOWS and name not in LONG):
                    continue
                overrides = [*arguments.overrides, f"training.seed={seed}"]
                task = open_task(
                    arguments.data, name, head_set, arguments.work_dir, rows=arguments.rows, overrides=overrides
                )
                recorded.add(key, SYSTEMS[system](task, arguments.work_dir, name in LONG))
    recorded.finish()
    print(table(recorded.runs))


def svm(task: Task, _: Path, is_long: bool) -> dict[str, Any]:  # noqa: ARG001
    """Fits a linear SVM on TF-IDF of words and pairs, with the training and the validation rows."""
    rows = [*task.data.train, *task.data.validation]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC())
    model.fit([row.text for row in rows], np.concatenate([task.targets("train"), task.targets("validation")]))
    decisions = model.decision_function([row.text for row in task.data.test])
    return {"seconds": 0, "scores": task.scores({"test": decisions.reshape(len(task.data.test), -1)})}


def fine_tuned(task: Task, work_dir: Path, is_long: bool) -> dict[str, Any]:
    """Trains with polyhead; a long test text is read truncated, and in windows."""
    model, seconds = fine_tune(task, work_dir)
    figures = {
        "seconds": round(seconds, 1),
        "scores": task.scores({"test": head_logits(model, task.prepared.splits["test"])}),
    }
    if is_long:
        figures["window_scores"] = task.scores({"test": window_logits(model, task, work_dir)})
    return figures


def fine_tuned_on_windows(task: Task, work_dir: Path, is_long: bool) -> dict[str, Any]:
    """Trains with polyhead on the windows of long texts."""
    tokenizer, limit = task.prepared.backbone.tokenizer, task.config.model.max_tokens
    content = limit - tokenizer.num_special_tokens_to_add(is_pair=False)

    def windows(row: Row) -> list[Row]:
        offsets = tokenizer.encode(row.text, add_special_tokens=False).offsets
        if len(offsets) <= content:
            return [row]
        parts = spans(len(offsets), content, MAX_WINDOWS)
        return [replace(row, text=row.text[offsets[begin][0] : offsets[end - 1][1]]) for begin, end in parts]

    train = tuple(part for row in task.data.train for part in windows(row))
    return fine_tuned(Task(task.kind, task.config, replace(task.data, train=train)), work_dir, is_long)


SVM, ON_WINDOWS = "SVM", "fine-tuned on windows"
SYSTEMS: Mapping[str, Callable[[Task, Path, bool], dict[str, Any]]] = {
    SVM: svm,
    "fine-tuned": fine_tuned,
    ON_WINDOWS: fine_tuned_on_windows,
}


def window_logits(model: PolyheadModel, task: Task, work_dir: Path) -> Logits:
    """Returns the logits of the test rows, each the mean of its windows' weighted by their tokens, as the server's."""
    path = work_dir / "tokenizer.json"
    task.prepared.backbone.tokenizer.save(str(path))
    tokenizer = Tokenizer(path, task.config.model.max_tokens, _MAX_CHARACTERS)
    texts = [tokens.windows for tokens in tokenizer.encode([row.text for row in task.data.test], MAX_WINDOWS)]
    ids = [list(window) for windows in texts for window in windows]
    logits = head_logits(model, EncodedRows(ids, Targets((), len(ids)), model.config.pad_token_id, [0] * len(ids), []))
    sizes = np.array([len(window) for window in ids], dtype=np.float64)
    starts = np.cumsum([0, *(len(windows) for windows in texts[:-1])])
    totals = np.add.reduceat(sizes, starts)
    return np.asarray(np.add.reduceat(logits * sizes[:, None], starts, axis=0) / totals[:, None])


def grouped(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Returns the runs of each set and system, the sets and systems in the order of the program."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (list(SETS).index(run["set"]), list(SYSTEMS).index(run["system"]))):
        found[run["set"], run["system"]].append(run)
    return found


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Formats the mean of each score, and its deviation over the seeds, by set and system."""
    lines = []
    for (name, system), found in grouped(runs).items():
        cells = [
            mean_text([run[part][metric] for run in found]) if part in found[0] else ""
            for part in ("scores", "window_scores")
            for metric in ("accuracy", "macro_f1")
        ]
        lines.append([name, system, str(len(found)), *cells, mean_text([run["seconds"] for run in found], 0)])
    header = ["set", "system", "seeds", "accuracy", "macro-F1", "windows: accuracy", "windows: macro-F1", "seconds"]
    return format_table(header, lines, numeric=header[2:])


if __name__ == "__main__":
    main()

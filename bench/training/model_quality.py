"""Accuracy of the demo and of training/configs: both heads on one backbone, each head alone, a frozen backbone.

    python -m bench.training.model_quality DATA --output bench/results/model_quality.json
    python -m bench.training.model_quality DATA --sets demo --seeds 1 --work-dir /tmp/runs --output /tmp/quick.json

Trains each model of a set with polyhead-train and reads its figures on the test rows from evaluation.json. A model with
one head has the epochs of the model with both, on the rows that have its label. DATA is the folder that the
configurations call POLYHEAD_DATA; for sst2_agnews, training/configs/split_sst2_agnews.py first writes its splits into
the work directory.

Runs are written as they end, and repeating the command continues where it stopped, also within a run of the same code;
commands with other sets or seeds add theirs to the same file. The run directories stay in the work directory:
bench.export measures them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead_training.config_file import read_config
from polyhead_training.terminal import format_table

from bench.harness import source
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.recorded_runs import RecordedRuns, Run, mean_text
from bench.harness.servers import BIN

CONFIGS = Path("training/configs")
BOTH = "both heads"


@dataclass(frozen=True)
class Variant:
    """One of the models of a set.

    Attributes:
        config: Its configuration.
        head: The head to keep; None for all.
    """

    config: Path
    head: str | None = None


_HEADS = ("topic", "sentiment")
SETS: Mapping[str, Mapping[str, Variant]] = {
    "demo": {BOTH: Variant(Path("training/demo/config.toml"))},
    "clothing": {
        BOTH: Variant(CONFIGS / "clothing.toml"),
        **{f"{head} alone": Variant(CONFIGS / "clothing.toml", head) for head in _HEADS},
        "frozen backbone": Variant(CONFIGS / "clothing_frozen.toml"),
    },
    "blitzer": {
        BOTH: Variant(CONFIGS / "blitzer.toml"),
        **{f"{head} alone": Variant(CONFIGS / "blitzer.toml", head) for head in _HEADS},
    },
    "sst2_agnews": {
        BOTH: Variant(CONFIGS / "sst2_agnews.toml"),
        "topic alone": Variant(CONFIGS / "agnews.toml"),
        "sentiment alone": Variant(CONFIGS / "sst2.toml"),
    },
}
# sst2_agnews trains for hours.
_DEFAULT = ("demo", "clothing", "blitzer")


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with the data files")
    parser.add_argument(
        "--sets", nargs="+", choices=SETS, default=list(_DEFAULT), help=f"(default: {' '.join(_DEFAULT)})"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default: 3)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override for every run"
    )
    parser.add_argument("--work-dir", type=Path, default=Path("build/model_quality"), help="folder of the runs")
    add_output_flag(parser, Path("bench/results/model_quality.json"))
    arguments = parser.parse_args()
    discard_other_code(arguments.work_dir)
    split = arguments.work_dir / "split"
    os.environ["POLYHEAD_DATA"] = str(arguments.data.resolve())
    os.environ["POLYHEAD_SPLIT"] = str(split.resolve())
    if "sst2_agnews" in arguments.sets:
        subprocess.run([sys.executable, CONFIGS / "split_sst2_agnews.py", arguments.data, split], check=True)
    recorded = RecordedRuns(arguments.output, {"overrides": arguments.overrides})
    for seed in range(arguments.seeds):
        for name in arguments.sets:
            for title, model in SETS[name].items():
                key = {"set": name, "model": title, "seed": seed}
                if not recorded.has(**key):
                    destination = arguments.work_dir / f"{name}-{title}-{seed}".replace(" ", "-")
                    overrides = [*kept_head(model), f"training.seed={seed}", *arguments.overrides]
                    recorded.add(key, train(model.config, overrides, destination))
    recorded.finish()
    print(table(recorded.runs))


def discard_other_code(work_dir: Path) -> None:
    """Removes a work directory whose runs are of other code, or of code that is not committed."""
    commit = work_dir / "commit"
    program = "bench.training.model_quality"
    if commit.exists() and not source.is_same(commit.read_text(encoding="utf-8"), source.head(), program=program):
        shutil.rmtree(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    commit.write_text(source.head(), encoding="utf-8")


def kept_head(model: Variant) -> list[str]:
    """Returns the override that removes the other heads of a configuration; none if all are kept."""
    if model.head is None:
        return []
    (head,) = (one for one in read_config(model.config).model.heads if one.name == model.head)
    # Strings, numbers, booleans and arrays are written alike in JSON and TOML.
    settings = head.model_dump(mode="json", exclude_unset=True)
    return [f"model.heads=[{{{', '.join(f'{key} = {json.dumps(value)}' for key, value in settings.items())}}}]"]


def train(config: Path, overrides: Sequence[str], destination: Path) -> dict[str, Any]:
    """Trains one run, or continues it, and returns its figures on the test rows."""
    # A complete run that is not recorded may be of another command.
    shutil.rmtree(destination, ignore_errors=True)
    flags = [part for override in overrides for part in ("--set", override)]
    command = [BIN / "polyhead-train", config, "--resume", "--output-dir", destination, *flags]
    subprocess.run(list(map(str, command)), check=True)
    return figures(json.loads((destination / "evaluation.json").read_text(encoding="utf-8")))


def figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is recorded of an ``evaluation.json``: the scores of each head, and those of the embedding."""
    names = ("rows", "accuracy", "macro_f1", "majority_baseline", "ece")
    heads = {
        head: {**{name: scores[name] for name in names}, "uncalibrated_ece": scores["uncalibrated"]["ece"]}
        for head, scores in evaluation["test"].items()
    }
    similarity = evaluation.get("similarity")
    return {
        "heads": heads,
        "similarity": similarity and {name: similarity[f"spearman_{name}"] for name in ("before", "after")},
    }


def table(runs: Sequence[Run]) -> str:
    """Returns a text table: for each set, model and head its rows, and the means of accuracy and macro-F1."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        for head, scores in run["heads"].items():
            found[run["set"], run["model"], head].append(scores)
    rows = [
        [*key, str(scores[0]["rows"]), *(mean_text([one[name] for one in scores]) for name in ("accuracy", "macro_f1"))]
        for key, scores in found.items()
    ]
    return format_table(["set", "model", "head", "rows", "accuracy", "macro-F1"], rows)


if __name__ == "__main__":
    main()

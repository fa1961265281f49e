"""The recipe few-shot beside SetFit and heads alone, on the same backbone, rows and test rows.

    python -m bench.training.few_shot DATA --setfit-python VENV/bin/python --output bench/results/few_shot.json
    python -m bench.training.few_shot DATA --sets trec --rows 8 --draws 1 --test-rows 200 --output /tmp/quick.json

Runs are written as they end, and repeating the command continues where it stopped; commands with other sets, rows,
draws or methods add theirs to the same file.

DATA is a folder with agnews_train, agnews_test, trec_train, sst2_train, sst2_dev, hwu64_train and hwu64_dev, each
NAME.jsonl.gz with rows of `text` and `label` or `sentiment`. SetFit runs in an environment of its own, that of
``bench.training.install_libraries``, with the settings of its paper: pairs of 20 iterations, batches of 16 pairs, one
epoch. --rows 5 and 10 of hwu64 are the published draws, the rows whose field `shot` is at most 5 or 10. Seconds are
those of training alone.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, NamedTuple, cast

# torch reads it once, at import; polyhead-train sets it to the same value.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from polyhead_training.backbone import open_backbone
from polyhead_training.config_file import read_config
from polyhead_training.terminal import format_table
from polyhead_training.train import train

from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.recorded_runs import RecordedRuns

BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
WORKER = Path(__file__).parent / "libraries" / "setfit_worker.py"
# Rows of a set without a test file that are kept for the test.
HELD_OUT = 1000
# Overrides of the configuration for each of polyhead's methods.
METHODS = {
    "few-shot": ["training.recipe=few-shot"],
    "heads only": ["training.recipe=few-shot", "training.stages=[{name='heads', train=['heads'], solver='lbfgs'}]"],
}
SETFIT = "SetFit"
# Characters of SetFit's log in an error message.
_SHOWN_CHARACTERS = 2000
CONFIG = """
name = "few-shot"
[model]
backbone = "{backbone}"
[[model.heads]]
name = "topic"
kind = "softmax"
field = "label"
[data]
train = "train.jsonl"
test = "test.jsonl"
"""

Row = dict[str, Any]


class Source(NamedTuple):
    """Files of a data set: training rows, test rows (None to hold rows out), and the field of the label."""

    train: str
    test: str | None
    field: str


SETS = {
    "agnews": Source("agnews_train", "agnews_test", "label"),
    "trec": Source("trec_train", None, "label"),
    "sst2": Source("sst2_train", "sst2_dev", "sentiment"),
    "hwu64": Source("hwu64_train", "hwu64_dev", "label"),
}


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--sets", default=",".join(SETS), help="data sets (default: %(default)s)")
    parser.add_argument("--rows", default="8,16,64", help="training rows per label (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=5, help="draws of the rows, from seed 0 (default: 5)")
    parser.add_argument("--test-rows", type=int, default=10**9, help="maximum number of test rows (default: all)")
    parser.add_argument("--setfit-python", type=Path, help="Python of an environment with setfit (default: without it)")
    parser.add_argument(
        "--methods", nargs="+", choices=[*METHODS, SETFIT], default=[*METHODS, SETFIT], help="(default: all)"
    )
    parser.add_argument("--setfit-iterations", type=int, default=20, help="pairs per row, halved (default: 20)")
    parser.add_argument("--backbone", default=BACKBONE, help="folder or id (default: %(default)s)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override polyhead's settings"
    )
    add_output_flag(parser, Path("bench/results/few_shot.json"))
    arguments = parser.parse_args()
    backbone = open_backbone(arguments.backbone, None, Path()).folder
    recorded = RecordedRuns(
        arguments.output,
        {
            "backbone": Path(arguments.backbone).name,
            "test_rows": arguments.test_rows,
            "setfit_iterations": arguments.setfit_iterations,
            "overrides": arguments.overrides,
            "threads": torch.get_num_threads(),
        },
    )
    with TemporaryDirectory() as folder, _setfit(arguments, backbone, Path(folder)) as setfit:
        methods = [name for name in arguments.methods if name != SETFIT or setfit]
        drawn = itertools.product(
            range(arguments.draws), arguments.sets.split(","), map(int, arguments.rows.split(","))
        )
        for draw, name, count in drawn:
            key = {"set": name, "rows": count, "draw": draw}
            missing = [method for method in methods if not recorded.has(**key, method=method)]
            if missing:
                write(Path(folder), backbone, *draw_rows(arguments.data, SETS[name], count, draw, arguments.test_rows))
            for method in missing:
                figures = (
                    setfit(Path(folder), draw)
                    if setfit and method == SETFIT
                    else run(Path(folder), [*METHODS[method], *arguments.overrides], draw)
                )
                recorded.add({**key, "method": method}, figures)
    recorded.finish()
    print(table(recorded.runs))


def draw_rows(folder: Path, source: Source, count: int, seed: int, test_rows: int) -> tuple[list[Row], list[Row]]:
    """Draws training rows, ``count`` for each label or all where there are fewer, and test rows."""
    rows = _read(folder, source.train, source.field)
    if source.test:
        tested = _read(folder, source.test, source.field)
    else:
        random.Random(0).shuffle(rows)
        tested, rows = rows[:HELD_OUT], rows[HELD_OUT:]
    if len(tested) > test_rows:
        tested = random.Random(0).sample(tested, test_rows)
    published = [row for row in rows if row["shot"] and row["shot"] <= count]
    if published and max(row["shot"] for row in published) == count:
        return published, tested
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row["label"]].append(row)
    rng = random.Random(seed)
    return [row for label in sorted(by_label) for row in _some(by_label[label], count, rng)], tested


def write(folder: Path, backbone: Path, train_rows: Sequence[Row], test_rows: Sequence[Row]) -> None:
    """Writes the configuration and the rows of a run."""
    (folder / "config.toml").write_text(CONFIG.format(backbone=backbone))
    for name, rows in (("train", train_rows), ("test", test_rows)):
        lines = [json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")


def run(folder: Path, overrides: Sequence[str], seed: int) -> dict[str, Any]:
    """Trains with polyhead on the rows of a folder."""
    config = read_config(folder / "config.toml", [*overrides, f"training.seed={seed}"])
    began = time.perf_counter()
    train(config, folder / "run", policy="restart", report=lambda _: None)
    wall = time.perf_counter() - began
    evaluation = json.loads((folder / "run" / "evaluation.json").read_text("utf-8"))
    lines = (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    return {
        "accuracy": evaluation["test"]["topic"]["accuracy"],
        "seconds": json.loads(lines[-1])["seconds"],
        # With loading, the report and the test rows.
        "wall_seconds": round(wall, 3),
    }


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns mean and standard deviation of the accuracy, and the mean time, of each method on each set."""
    grouped: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for one in runs:
        grouped[one["set"], one["rows"], one["method"]].append(one)
    return [
        {
            "set": name,
            "rows": rows,
            "method": method,
            "draws": len(found),
            "accuracy": round(statistics.fmean(one["accuracy"] for one in found), 4),
            "sd": round(statistics.stdev(one["accuracy"] for one in found), 4) if len(found) > 1 else None,
            "seconds": round(statistics.fmean(one["seconds"] for one in found), 2),
        }
        for (name, rows, method), found in grouped.items()
    ]


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Formats the summary for a terminal."""
    header = ["set", "rows per label", "method", "draws", "accuracy", "sd", "seconds"]
    rows = [["-" if value is None else str(value) for value in one.values()] for one in summary(runs)]
    return format_table(header, rows, numeric=header[3:])


@contextmanager
def _setfit(arguments: Any, backbone: Path, folder: Path) -> Iterator[Callable[[Path, int], dict[str, Any]] | None]:
    """Starts SetFit in its environment; yields a function that trains on the rows of a folder with a seed."""
    if not arguments.setfit_python:
        yield None
        return
    command = [str(arguments.setfit_python), str(WORKER)]
    # Folders of this repository are not for that environment.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = folder / "setfit.log"
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        jobs, answers = cast(IO[str], process.stdin), cast(IO[str], process.stdout)

        def measure(folder: Path, seed: int) -> dict[str, Any]:
            job = {
                "train": str(folder / "train.jsonl"),
                "test": str(folder / "test.jsonl"),
                "model": str(backbone),
                "seed": seed,
                "iterations": arguments.setfit_iterations,
            }
            jobs.write(json.dumps(job) + "\n")
            jobs.flush()
            answer = answers.readline()
            if not answer:
                sys.exit(f"SetFit ended: {log.read_text(encoding='utf-8')[-_SHOWN_CHARACTERS:]}")
            return dict(json.loads(answer))

        yield measure
        jobs.close()


def _read(folder: Path, name: str, field: str) -> list[Row]:
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    found = [row for row in rows if row[field] is not None]
    return [{"text": row["text"], "label": str(row[field]), "shot": row.get("shot")} for row in found]


def _some(rows: Sequence[Row], count: int, rng: random.Random) -> list[Row]:
    return rng.sample(rows, min(count, len(rows)))


if __name__ == "__main__":
    main()

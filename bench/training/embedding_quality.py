r"""One run that teaches the embedding and the heads, beside its single-task twins and sentence-transformers' trainer.

    python -m bench.training.embedding_quality training/configs/embedding_multitask.toml --data-dir DATA --seeds 3
    python -m bench.training.embedding_quality training/configs/embedding_multitask.toml --data-dir DATA --rows 500 \
        --pairs 500 --systems before joint --output /tmp/quick.json                               # a quick look

Systems: ``before``, the backbone; ``joint``, the configuration; ``labels``, the same without data.embedding;
``embedding``, the same without heads; ``sentence-transformers``, its trainer with the pairs, losses, batch size, epochs
and learning rate of the last stage; ``joint, whole embedding``, the joint run without Matryoshka; ``joint, scifact``,
the joint run with the training claims of scifact and their abstracts as pairs. No system sees the evaluated texts:
the pairs of stsb_dev and sick_dev, and the retrieval tasks of the configuration. All are evaluated by the same code.

Results are written after each run, and repeating the command continues where it stopped. sentence-transformers
requires its environment, or another Python with it (--library-python):

    python -m bench.training.install_libraries
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# torch reads it once, at import; polyhead-train sets it to the same value.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from polyhead_rows import RawRow, read_rows
from polyhead_training.backbone import find_backbone
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from polyhead_training.data.dataset import read_data
from polyhead_training.sweep.toml_text import toml_value
from polyhead_training.terminal import format_table

from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.recorded_runs import RecordedRuns, mean_text
from bench.harness.servers import BIN

from .embedding_texts import EvaluatedTexts, cells, embed_with_backbone, embed_with_run, training_pairs
from .install_libraries import ENVIRONMENTS

BEFORE, LABELS, LIBRARY, SCIFACT = "before", "labels", "sentence-transformers", "joint, scifact"
SYSTEMS = (BEFORE, "joint", LABELS, "embedding", LIBRARY, "joint, whole embedding", SCIFACT)
PAIRS = ("stsb_dev", "sick_dev")
# Evaluation is done here, once for every system.
_NOT_EVALUATED = ("data.similarity=[]", "data.retrieval=[]")
_NO_ROWS = ("model.heads=[]", "data.train=[]", "data.validation=[]", "data.test=[]")
# Copies of the claims' pairs in an epoch: they are few beside the other sources.
_SCIFACT_COPIES = 4
_SCRIPT = Path(__file__).parent / "libraries/sentence_transformers_trainer.py"


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("config", type=Path, help="configuration with heads and data.embedding")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the data, as POLYHEAD_DATA")
    parser.add_argument("--rows", type=int, help="labelled rows per source, at random (default: all)")
    parser.add_argument("--pairs", type=int, help="rows per embedding source, at random (default: all)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0 (default: 1)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="(default: all)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a field"
    )
    parser.add_argument("--work-dir", type=Path, default=Path("build/embedding-quality"), help="folder of the runs")
    parser.add_argument(
        "--library-python",
        type=Path,
        default=ENVIRONMENTS / "sentence-transformers/bin/python",
        help="Python with sentence-transformers (default: that of install_libraries)",
    )
    add_output_flag(parser, Path("bench/results/embedding_quality.json"))
    arguments = parser.parse_args()
    os.environ["POLYHEAD_DATA"] = str(arguments.data_dir.resolve())
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    recorded = RecordedRuns(
        arguments.output, {"rows": arguments.rows, "pairs": arguments.pairs, "overrides": arguments.overrides}
    )
    overrides = [*arguments.overrides, *_subset(arguments)]
    evaluated = EvaluatedTexts(
        [arguments.data_dir / f"{name}.jsonl.gz" for name in PAIRS],
        read_data(read_config(arguments.config, [*arguments.overrides, *_NO_ROWS])).retrieval,
    )
    for seed in range(arguments.seeds):
        for system in arguments.systems:
            key = {"system": system, "seed": seed}
            if recorded.has(**key) or (system == BEFORE and seed):
                continue
            recorded.add(key, _run(system, arguments, [*overrides, f"training.seed={seed}"], evaluated))
    recorded.finish()
    print(table(recorded.runs))


def _subset(arguments: Any) -> list[str]:
    """Writes random parts of the training files; returns the overrides that name them."""
    config = read_config(arguments.config, arguments.overrides)
    overrides = []
    found = config.sources()
    if arguments.rows:
        paths = [str(_sample(path, arguments.rows, arguments.work_dir)) for path in found["train"]]
        overrides.append(f"data.train={paths}")
    if arguments.pairs:
        for index in range(len(config.data.embedding)):
            files = [_sample(path, arguments.pairs, arguments.work_dir) for path in found[f"embedding.{index}.files"]]
            overrides.append(f"data.embedding.{index}.files={[str(path) for path in files]}")
    return overrides


def _sample(path: Path, count: int, folder: Path) -> Path:
    rows = [row.values for row in read_rows(path) if isinstance(row, RawRow)]
    chosen = random.Random(0).sample(rows, min(count, len(rows)))
    target = (folder / f"{path.name.split('.')[0]}-{count}.jsonl").resolve()
    target.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return target


def _run(system: str, arguments: Any, overrides: Sequence[str], evaluated: EvaluatedTexts) -> dict[str, Any]:
    """Trains a system; returns its seconds, the accuracy of its heads on test and the scores of its embedding."""
    config = read_config(arguments.config, overrides)
    destination = arguments.work_dir / f"{system} {config.training.seed}".replace(",", "").replace(" ", "-")
    began = time.monotonic()
    if system == BEFORE:
        return {"seconds": 0, **evaluated.scores(embed_with_backbone(config, evaluated.texts))}
    if system == LIBRARY:
        vectors, seconds = _train_library(arguments.library_python, config, evaluated.texts, destination)
        return {"seconds": round(seconds), **evaluated.scores(vectors)}
    changes = [*_NOT_EVALUATED, *_changes(system, config, arguments)]
    flags = [part for override in [*overrides, *changes] for part in ("--set", override)]
    subprocess.run(
        [BIN / "polyhead-train", arguments.config, "--resume", "--output-dir", destination, *flags], check=True
    )
    evaluation = json.loads((destination / "evaluation.json").read_text(encoding="utf-8"))
    figures = {
        "seconds": round(time.monotonic() - began),
        "accuracy": {head: found["accuracy"] for head, found in evaluation.get("test", {}).items()},
        # Without data.embedding the embedding is only kept.
        **({} if system == LABELS else evaluated.scores(embed_with_run(destination, evaluated.texts))),
    }
    shutil.rmtree(destination)
    return figures


def _changes(system: str, config: Config, arguments: Any) -> list[str]:
    """Returns the overrides that make a system of the configuration."""
    if system == LABELS:
        return ["data.embedding=[]", "training.matryoshka=[]"]
    if system == "embedding":
        return _embedding_alone(config)
    if system == "joint, whole embedding":
        return ["training.matryoshka=[]"]
    if system == SCIFACT:
        path = (arguments.work_dir / "scifact_train.jsonl").resolve()
        training_pairs(arguments.data_dir, "scifact", path, _SCIFACT_COPIES)
        sources = [source.model_dump(mode="json", exclude_unset=True) for source in config.data.embedding]
        added = {"files": str(path), "kind": "pairs", "name": "scifact"}
        return [f"data.embedding={toml_value([*sources, added])}"]
    return []


def _embedding_alone(config: Config) -> list[str]:
    """Returns the overrides that leave the embedding as the only task, in the last stage alone."""
    last = config.training.stages[-1]
    parts = [part for part in last.train if part not in {"heads", "pooling"} and not part.startswith("head:")]
    stage = {"name": "all", "train": parts, "epochs": last.epochs, "learning_rate": last.learning_rate}
    return [
        *_NO_ROWS,
        "model.pooling='mean'",
        f"training.stages={toml_value([stage])}",
    ]


def _train_library(python: Path, config: Config, texts: Sequence[str], folder: Path) -> tuple[Any, float]:
    """Trains with sentence-transformers; returns the embeddings of texts and the seconds of the training."""
    data, training = read_data(config), config.training
    task = {
        "backbone": str(find_backbone(config).folder),
        "max_tokens": config.model.max_tokens,
        "matryoshka": training.matryoshka,
        "batch_size": training.batch_size,
        "epochs": training.stages[-1].epochs,
        "learning_rate": training.stages[-1].learning_rate,
        "warmup": training.warmup,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "bf16": training.mixed_precision == "bf16",
        "seed": training.seed,
        "sources": [
            {
                "name": source.name,
                "loss": source.config.objective,
                "texts": [row.texts for row in source.rows],
                "scores": _scaled([row.score for row in source.rows], *source.score_range),
            }
            for source in data.embedding
        ],
        "texts": list(texts),
    }
    folder.mkdir(exist_ok=True)
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([python, _SCRIPT, folder.resolve()], check=True, env=environment)
    vectors = np.load(folder / "after.npy")
    seconds = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder)
    return vectors, seconds


def _scaled(scores: Sequence[float], low: float, high: float) -> list[float]:
    return [(score - low) / ((high - low) or 1.0) for score in scores]


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Formats the mean of each figure of the whole embedding, and its deviation, over the seeds of each system."""
    systems = [system for system in SYSTEMS if any(run["system"] == system for run in runs)]
    rows: dict[str, list[dict[str, float | None]]] = {system: [] for system in systems}
    for run in runs:
        scores = {name: run[name] for name in ("spearman", "ndcg_at_10") if name in run}
        whole = next(iter(next(iter(scores["spearman"].values())))) if scores else ""
        rows[run["system"]].append({**run.get("accuracy", {}), **cells(scores, whole), "seconds": run["seconds"]})
    columns = list(dict.fromkeys(name for found in rows.values() for one in found for name in one))
    lines = [
        [system, *(mean_text([one.get(name) for one in found], 0 if name == "seconds" else 4) for name in columns)]
        for system, found in rows.items()
    ]
    return format_table(["system", *columns], lines, numeric=columns)


if __name__ == "__main__":
    main()

"""Backbone families from training to serving: small random checkpoints of each, and whole ones by folder.

    python -m bench.training.families --output bench/results/families.json
    python -m bench.training.families --checkpoints build/all-mpnet-base-v2 --output bench/results/families.json
    python -m bench.training.families --families bert --output /tmp/quick.json                        # a quick look

Each checkpoint is trained with its lower layers frozen, exported as fp32 and int8 through the gate, and served by a
server process, whose embeddings and labels are compared with those of the bundle's graph in this process. A small
checkpoint learns a few rows. A whole one learns the demo's rows for some steps, and the gate's evaluation data are the
demo's test rows. Rows are written as they end, and repeating the command continues where it stopped. The exit code is
1 if a variant failed its gate or a server's answers differ.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import torch
from polyhead_client import Client
from polyhead_export.export import export
from polyhead_export.runners import onnx_runner
from polyhead_export.settings import Settings
from polyhead_training.config_file import read_config
from polyhead_training.terminal import discard, format_table
from polyhead_training.tokenization import encode, load_tokenizer, pad
from polyhead_training.train import train
from transformers import AutoConfig

from bench.harness import texts
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.recorded_runs import TRAINING_PACKAGES, RecordedRuns
from bench.harness.servers import BIN, serving
from tests.support import int8_arithmetic
from tests.support.tiny_checkpoints import WRITERS
from tests.support.tiny_tokenizers import SENTENCES
from tests.support.tiny_training import write_config

VARIANTS = ("fp32", "int8")
# Largest difference of a server's embedding from that of the graph in this process: rows of another batch are added in
# another order.
TOLERANCE = 1e-5
# Checks of the gate that are recorded.
CHECKS = (
    "difference.sentence_embedding",
    "cosine_distance.mean",
    "cosine_distance.worst",
    "label_disagreement",
    "batch_invariance",
)
_DEMO = Path("training/demo")
# The labels of a model that was trained for ten steps are close to each other.
_TINY_LIMITS = {"label_disagreement": 1.0, **int8_arithmetic.LIMITS}


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--families", nargs="+", choices=WRITERS, help="small checkpoints (default: all)")
    parser.add_argument(
        "--checkpoints", nargs="+", type=Path, help="folders of whole checkpoints, instead of small ones"
    )
    parser.add_argument("--steps", type=int, default=60, help="training steps of a whole checkpoint (default: 60)")
    add_output_flag(parser, Path("bench/results/families.json"))
    arguments = parser.parse_args()
    recorded = RecordedRuns(arguments.output, {"steps": arguments.steps}, (*TRAINING_PACKAGES, "onnxruntime"))
    whole = {path.name: path for path in arguments.checkpoints or ()}
    for name in whole or arguments.families or WRITERS:
        if recorded.has(checkpoint=name):
            continue
        with TemporaryDirectory() as folder:
            if name in whole:
                figures = _measure_whole(whole[name], arguments.steps, Path(folder))
            else:
                figures = _measure_tiny(name, Path(folder))
        recorded.add({"checkpoint": name}, figures)
    recorded.finish()
    print(table(recorded.runs))
    sys.exit(not all(_is_good(run) for run in recorded.runs))


def _measure_tiny(family: str, folder: Path) -> dict[str, Any]:
    (folder / "checkpoint").mkdir()
    torch.manual_seed(0)
    WRITERS[family](folder / "checkpoint")
    config = read_config(write_config(folder, folder / "checkpoint"), ["training.select=last"])
    began = time.perf_counter()
    train(config, folder / "run", report=discard)
    seconds = time.perf_counter() - began
    settings = Settings(limits=dict.fromkeys(VARIANTS, _TINY_LIMITS))
    shown = {"family": family, "layers": "random, small", "training_seconds": round(seconds, 1)}
    return {**shown, **_export_and_serve(folder, settings, [*SENTENCES, " ".join(SENTENCES)])}


def _measure_whole(checkpoint: Path, steps: int, folder: Path) -> dict[str, Any]:
    found = AutoConfig.from_pretrained(checkpoint)
    flags = ["--set", f"model.backbone={checkpoint.resolve()}", "--max-steps", str(steps)]
    command: list[str | Path] = [BIN / "polyhead-train", _DEMO / "config.toml", "--output-dir", folder / "run", *flags]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - began
    settings = Settings(eval_data=(str((_DEMO / "test.jsonl").resolve()),))
    shown = {
        "family": found.model_type,
        "layers": found.num_hidden_layers,
        "training_seconds": round(seconds, 1),
    }
    return {**shown, **_export_and_serve(folder, settings, texts.read_texts(_DEMO / "test.jsonl")[:32])}


def _export_and_serve(folder: Path, settings: Settings, served: Sequence[str]) -> dict[str, Any]:
    """Exports a run, and asks a server for the texts; returns the figures of each variant."""
    lines: list[str] = []
    began = time.perf_counter()
    exported = export(folder / "run", folder / "bundle", lines.append, settings)
    seconds = time.perf_counter() - began
    figures: dict[str, Any] = {"export_seconds": round(seconds, 1), "variants": {}}
    for name in VARIANTS:
        if name not in exported.manifest.variants:
            (reason,) = [line for line in lines if line.startswith(f"variant {name} is left out: ")]
            figures["variants"][name] = {"passed": False, "reason": reason}
            continue
        variant = exported.manifest.variants[name]
        checks = {check.name: check.value for check in variant.gate}
        figures["variants"][name] = {
            "passed": all(check.passed for check in variant.gate),
            "gate": checks,
            "megabytes": round((folder / "bundle" / variant.file).stat().st_size / 1e6, 1),
            "server_difference": _server_difference(folder / "bundle", name, served),
        }
    return figures


def _server_difference(path: Path, variant: str, served: Sequence[str]) -> float:
    """Returns the largest difference between the embeddings of a server and those of the bundle's graph."""
    source = bundle.load(path)
    manifest = source.manifest
    run = onnx_runner(source.file(manifest.variants[variant].file))
    tokenizer = load_tokenizer(source.file("tokenizer.json"))
    ids = list(encode(tokenizer, served, manifest.max_tokens))
    expected = run(*pad(ids, manifest.pad_token_id))[manifest.embedding.output]
    with serving(path, "--variant", variant) as target, Client(target) as client:
        answers = client.embed(served)
    return float(np.abs(np.stack([answer.embedding for answer in answers]) - expected).max())


def _is_good(run: dict[str, Any]) -> bool:
    return all(one["passed"] and one["server_difference"] <= TOLERANCE for one in run["variants"].values())


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Formats the figures of each checkpoint and variant."""
    rows = []
    for run in runs:
        for name, one in run["variants"].items():
            checks = [
                f"{one['gate'][check]:.1e}" if one["passed"] and check in one["gate"] else "-" for check in CHECKS
            ]
            served = f"{one['server_difference']:.1e}" if one["passed"] else "-"
            rows.append([run["checkpoint"], name, "passed" if one["passed"] else "failed", *checks, served])
    return format_table(["checkpoint", "variant", "gate", *CHECKS, "server"], rows, numeric=[*CHECKS, "server"])


if __name__ == "__main__":
    main()

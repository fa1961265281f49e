"""Resumption of killed training runs: their weights must equal those of an uninterrupted run bit for bit.

    python -m bench.training.resume training/demo/config.toml --tiny --max-steps 120 --output bench/results/resume.json
    python -m bench.training.resume training/demo/config.toml --tiny --kills 3 --output /tmp/resume.json  # a quick look

Each run is killed once with SIGKILL, at a time drawn uniformly from the duration of a run, and then resumed. With
--tiny the backbone is a small random BERT, so that a run takes seconds; everything else is the same. Control: a run
with another seed must have different weights. The exit code is 1 if a resumed run differs or the control does not.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.servers import BIN


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("config", type=Path, help="configuration of a short run")
    parser.add_argument("--tiny", action="store_true", help="train on a small random backbone")
    parser.add_argument("--kills", type=int, default=30, help="runs to kill (default: 30)")
    parser.add_argument("--max-steps", type=int, default=12, help="training steps per run (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill times (default: 0)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a field of the configuration",
    )
    add_output_flag(parser, Path("bench/results/resume.json"))
    arguments = parser.parse_args()
    flags = ["--max-steps", str(arguments.max_steps)]
    with TemporaryDirectory() as folder:
        flags += tiny(Path(folder) / "backbone") if arguments.tiny else []
        for override in [*arguments.overrides, "training.checkpoint_steps=2"]:
            flags += ["--set", override]
        figures = measure([str(arguments.config), *flags], arguments.kills, random.Random(arguments.seed), Path(folder))
    figures = {**results.provenance(("polyhead", "torch", "transformers")), **figures}
    print(json.dumps(figures, indent=2))
    results.write(arguments.output, figures)
    sys.exit(figures["bit_equal"] < arguments.kills or not figures["control_differs"])


def measure(
    command: Sequence[str], kills: int, rng: random.Random, folder: Path, earliest: float = 0.0
) -> dict[str, Any]:
    """Trains one uninterrupted run, one control and the killed runs; returns the figures.

    Args:
        command: Arguments of ``polyhead-train``.
        kills: Runs to kill.
        rng: Draws the kill times.
        folder: Directory for the runs.
        earliest: Earliest kill time as a fraction of the duration of a run.
    """
    began = time.monotonic()
    train(command, folder / "whole")
    seconds = time.monotonic() - began
    expected = digest(folder / "whole")
    train([*command, "--set", "training.seed=12345"], folder / "other")
    found: list[tuple[str, bool]] = []
    with tqdm(total=kills, unit="kill") as bar:
        while len(found) < kills:
            destination = folder / "killed"
            began = time.monotonic()
            state = _train_and_kill(command, destination, rng.uniform(earliest * seconds, seconds))
            if destination.exists():
                # The run ended before its kill time, so it does not count, and a run is shorter than assumed.
                seconds = min(seconds, time.monotonic() - began)
            else:
                train([*command, "--resume"], destination)
                found.append((state, digest(destination) == expected))
                bar.update()
            shutil.rmtree(destination)
    return {
        "kills": kills,
        "run_seconds": round(seconds, 1),
        "killed": dict(Counter(state for state, _ in found)),
        "bit_equal": sum(equal for _, equal in found),
        "control_differs": digest(folder / "other") != expected,
    }


def tiny(folder: Path) -> list[str]:
    """Writes a random BERT of two small layers and returns the flags that train on it.

    Args:
        folder: Directory for the backbone; its tokenizer is that of the default backbone.
    """
    from polyhead_training.backbone import open_backbone
    from transformers import BertConfig, BertModel

    backbone = open_backbone("sentence-transformers/all-MiniLM-L6-v2", None, Path())
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=backbone.tokenizer.get_vocab_size(), **sizes)).save_pretrained(folder)
    backbone.tokenizer.save(str(folder / "tokenizer.json"))
    # The last stage of the configuration names layers that the small backbone lacks.
    overrides = [f"model.backbone={folder}", "training.stages.1.train=['all']", "training.stages.1.unfreeze_over=0.5"]
    return [part for override in overrides for part in ("--set", override)]


def _train_and_kill(command: Sequence[str], destination: Path, after_s: float) -> str:
    """Starts a run and kills it; returns whether it had written a checkpoint."""
    arguments = [str(BIN / "polyhead-train"), *command, "--output-dir", str(destination)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    in_progress = destination.with_name(destination.name + ".in_progress")
    return "after a checkpoint" if (in_progress / "last.safetensors").exists() else "before a checkpoint"


def train(command: Sequence[str], destination: Path) -> None:
    """Trains a run without interruption."""
    arguments = [str(BIN / "polyhead-train"), *command, "--output-dir", str(destination)]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def digest(run: Path) -> str:
    """Returns the SHA-256 of the weights of a run."""
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()

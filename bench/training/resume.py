"""Kills training with SIGKILL at random moments, resumes it, and compares the weights with those of a run left alone.

    python bench/training/resume.py training/demo/config.toml --tiny [--kills 30] [--output FILE]

With ``--tiny`` the backbone is a small random BERT, so that a run takes seconds; everything else is the same. Each run
is killed once, at a moment drawn evenly from the time that the whole run took, and resumed until it is done. Control:
the same run with another seed has other weights.
"""

from __future__ import annotations

import argparse
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

from bench.harness.servers import BIN


def main() -> None:
    """Kills, resumes, compares, prints and writes the figures; ends with 1 where weights differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="configuration of a short run")
    parser.add_argument("--tiny", action="store_true", help="train on a small random backbone")
    parser.add_argument("--kills", type=int, default=30, help="runs that are killed (default: 30)")
    parser.add_argument("--max-steps", type=int, default=12, help="steps of a run (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="override a field, key=value")
    parser.add_argument("--output", type=Path, default=Path("bench/results/resume.json"), help="JSON to write")
    arguments = parser.parse_args()
    flags = ["--max-steps", str(arguments.max_steps)]
    with TemporaryDirectory() as folder:
        flags += tiny(Path(folder) / "backbone") if arguments.tiny else []
        for override in [*arguments.overrides, "training.checkpoint_steps=2"]:
            flags += ["--set", override]
        figures = measure([str(arguments.config), *flags], arguments.kills, random.Random(arguments.seed), Path(folder))
    figures["command"] = " ".join(["python", *sys.argv])
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    sys.exit(figures["bit_equal"] < arguments.kills or not figures["control_differs"])


def measure(
    command: Sequence[str], kills: int, chooser: random.Random, folder: Path, earliest: float = 0.0
) -> dict[str, Any]:
    """Runs once undisturbed, once as the control, and once a kill.

    Args:
        command: Arguments of ``polyhead-train``.
        kills: Runs that are killed.
        chooser: Draws the moments.
        folder: Where the runs are written.
        earliest: From when on runs are killed, as a part of the time that a run takes.
    """
    began = time.monotonic()
    train(command, folder / "whole")
    seconds = time.monotonic() - began
    expected = _digest(folder / "whole")
    train([*command, "--set", "training.seed=12345"], folder / "other")
    found: list[tuple[str, bool]] = []
    with tqdm(total=kills, unit="kill") as bar:
        while len(found) < kills:
            destination = folder / "killed"
            began = time.monotonic()
            state = _killed(command, destination, chooser.uniform(earliest * seconds, seconds))
            if destination.exists():
                # It was over before the moment came: that is no kill, and runs take less time than was thought.
                seconds = min(seconds, time.monotonic() - began)
            else:
                train([*command, "--resume"], destination)
                found.append((state, _digest(destination) == expected))
                bar.update()
            shutil.rmtree(destination)
    return {
        "kills": kills,
        "seconds_of_a_run": round(seconds, 1),
        "killed": dict(Counter(state for state, _ in found)),
        "bit_equal": sum(equal for _, equal in found),
        "control_differs": _digest(folder / "other") != expected,
    }


def tiny(folder: Path) -> list[str]:
    """Flags of a run on a random BERT of two small layers, with the tokenizer of the default backbone.

    Args:
        folder: Where the backbone is written.
    """
    from polyhead_training.backbone import open_backbone
    from transformers import BertConfig, BertModel

    known = open_backbone("sentence-transformers/all-MiniLM-L6-v2", None, Path())
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=known.tokenizer.get_vocab_size(), **sizes)).save_pretrained(folder)
    known.tokenizer.save(str(folder / "tokenizer.json"))
    # The last stage trains layers that a small backbone does not have.
    overrides = [f"model.backbone={folder}", "training.stages.1.train=['all']", "training.stages.1.unfreeze_over=0.5"]
    return [part for override in overrides for part in ("--set", override)]


def _killed(command: Sequence[str], destination: Path, after_s: float) -> str:
    """Kills a run; says how far it had come."""
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
    """Trains undisturbed."""
    arguments = [str(BIN / "polyhead-train"), *command, "--output-dir", str(destination)]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _digest(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()

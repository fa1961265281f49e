"""Resumption of killed runs by loss and recipe: their weights must equal those of an uninterrupted run bit for bit.

    python -m bench.training.resume_losses --output bench/results/resume_losses.json
    python -m bench.training.resume_losses --cases 'CoSENT' --kills 1 --output /tmp/quick.json  # a quick look

Each case trains a small random BERT on the demo's texts. Each killed run writes a checkpoint every second step and is
killed with SIGKILL at a random time after the first one; then it is resumed. Control: a run with another seed must
have different weights. Cases are written as they end, and repeating the command continues where it stopped. The exit
code is 1 if a resumed run differs or a control does not.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from polyhead_training.terminal import format_table

from bench.harness import texts
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.recorded_runs import RecordedRuns
from bench.harness.servers import BIN

from .resume import digest, tiny, train

_CONFIG = """
name = "resume"
[model]
backbone = "backbone"
max_tokens = 64
heads = [{name = "topic", kind = "softmax", field = "label"}]
[data]
train = "train.jsonl"
"""
_TRAINING = "training.batch_size=16"
_ALL = "{name='all', train=['all'], epochs=1, learning_rate=1e-3}"
_STAGE = f"training.stages=[{_ALL}]"
_TWO_STAGES = (
    "training.stages=[{name='heads', train=['heads', 'pooling'], epochs=1, learning_rate=1e-3}, "
    "{name='all', train=['all'], epochs=1, learning_rate=1e-3, unfreeze_over=0.5}]"
)


def _embedding(source: str) -> tuple[str, ...]:
    return (_STAGE, f"data.embedding=[{{{source}}}]")


def _head(head: str) -> tuple[str, ...]:
    return (_STAGE, f"model.heads=[{{{head}}}]")


# Overrides of each case. Embedding losses train beside the head.
CASES: dict[str, tuple[str, ...]] = {
    "CoSENT": _embedding("files='scored.jsonl', kind='scored_pairs'"),
    "cosine": _embedding("files='scored.jsonl', kind='scored_pairs', loss='cosine'"),
    "ranking, pairs": _embedding("files='pairs.jsonl', kind='pairs'"),
    "ranking, triplets": _embedding("files='triplets.jsonl', kind='triplets'"),
    "ranking, cached gradients": _embedding("files='triplets.jsonl', kind='triplets', batch_size=48"),
    "ranking, Matryoshka": (*_embedding("files='pairs.jsonl', kind='pairs'"), "training.matryoshka=[16, 8]"),
    "embedding alone": (
        "training.stages=[{name='all', train=['layers'], epochs=3, learning_rate=1e-3}]",
        "model.heads=[]",
        "model.pooling='mean'",
        "data.train=[]",
        "data.embedding=[{files='triplets.jsonl', kind='triplets'}, {files='scored.jsonl', kind='scored_pairs'}]",
    ),
    "few-shot recipe": ("training.recipe='few-shot'", "data.train='few.jsonl'"),
    "softmax, two stages": (_TWO_STAGES,),
    "multilabel": _head("name='tags', kind='multilabel'"),
    "ordinal": _head("name='stars', kind='ordinal'"),
    "regression": _head("name='score', kind='regression'"),
    "focal loss, R-Drop": (*_head("name='label', kind='softmax', loss='focal'"), "training.r_drop=1"),
    "moving average": (_STAGE, "training.average='ema'"),
}


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE", default=list(CASES), help="(default: all)")
    parser.add_argument("--kills", type=int, default=3, help="runs to kill per case (default: 3)")
    parser.add_argument("--rows", type=int, default=480, help="training rows (default: %(default)s)")
    add_output_flag(parser, Path("bench/results/resume_losses.json"))
    arguments = parser.parse_args()
    recorded = RecordedRuns(arguments.output, {"kills": arguments.kills, "rows": arguments.rows})
    with TemporaryDirectory() as name:
        folder = Path(name)
        tiny(folder / "backbone")
        write_data(folder, arguments.rows)
        for case in arguments.cases:
            if not recorded.has(case=case):
                overrides = [*CASES[case], _TRAINING, "training.checkpoint_steps=2"]
                flags = [part for override in overrides for part in ("--set", override)]
                recorded.add({"case": case}, measure([str(folder / "config.toml"), *flags], arguments.kills, folder))
    recorded.finish()
    lines = [[run["case"], str(run["kills"]), str(run["bit_equal"]), str(run["steps"])] for run in recorded.runs]
    print(format_table(["case", "kills", "bit-equal", "steps"], lines))
    sys.exit(any(run["bit_equal"] < run["kills"] or not run["control_differs"] for run in recorded.runs))


def write_data(folder: Path, count: int) -> None:
    """Writes the configuration and rows for every case, made of the demo's texts."""
    (folder / "config.toml").write_text(_CONFIG, encoding="utf-8")
    rows = random.Random(0).sample(texts.read(texts.DEMO_TEXTS), count)
    labels = sorted({row["label"] for row in rows})
    by_label = {label: [row["text"] for row in rows if row["label"] == label] for label in labels}
    labelled, scored, pairs, triplets = [], [], [], []
    for number, row in enumerate(rows):
        text, label = row["text"], row["label"]
        partner = by_label[label][number % len(by_label[label])]
        other = by_label[labels[(labels.index(label) + 1) % len(labels)]][0]
        place = labels.index(label)
        tags = [label, "praise"] if row["sentiment"] else [label]
        labelled.append({"text": text, "label": label, "tags": tags, "stars": place % 5 + 1, "score": len(text) / 100})
        scored.append({"a": text, "b": rows[number - 1]["text"], "score": float(label == rows[number - 1]["label"])})
        if partner != text:
            pairs.append({"a": text, "b": partner})
            triplets.append({"anchor": text, "positive": partner, "negative": other})
    few = [row for label in labels for row in [one for one in labelled if one["label"] == label][:8]]
    for name, found in (
        ("train", labelled),
        ("few", few),
        ("scored", scored),
        ("pairs", pairs),
        ("triplets", triplets),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")


def measure(command: Sequence[str], kills: int, folder: Path) -> dict[str, Any]:
    """Trains one uninterrupted run, one control and the killed runs of a case; returns its figures."""
    whole, other, killed = (folder / name for name in ("whole", "other", "killed"))
    train(command, whole)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = lines[-1]["seconds"]
    expected = digest(whole)
    train([*command, "--set", "training.seed=12345"], other)
    figures = {
        "kills": kills,
        "bit_equal": 0,
        "control_differs": digest(other) != expected,
        "steps": lines[-1]["step"],
        "training_seconds": round(seconds, 2),
    }
    rng = random.Random(0)
    for _ in range(kills):
        while not _kill(command, killed, rng.uniform(0, seconds)):
            # The run ended before its kill time, which does not count.
            shutil.rmtree(killed)
            seconds /= 2
        train([*command, "--resume"], killed)
        figures["bit_equal"] += digest(killed) == expected
        shutil.rmtree(killed)
    for run in (whole, other):
        shutil.rmtree(run)
    return figures


def _kill(command: Sequence[str], destination: Path, after_s: float) -> bool:
    """Starts a run and kills it so long after its first checkpoint; returns False if it had ended by then."""
    arguments = [str(BIN / "polyhead-train"), *command, "--output-dir", str(destination)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = destination.with_name(destination.name + ".in_progress") / "last.safetensors"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    try:
        process.wait(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if destination.exists():
        return False
    if process.returncode != -signal.SIGKILL:
        sys.exit(f"a run failed with exit code {process.returncode}: {' '.join(arguments)}")
    return True


if __name__ == "__main__":
    main()

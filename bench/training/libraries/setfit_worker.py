"""Trains SetFit models in an environment of their own; bench.training.few_shot starts it.

Reads a job per line of stdin, ``{"train": FILE, "test": FILE, "model": FOLDER, "seed": N, "iterations": N}``, and
writes a line per job to stdout, ``{"accuracy": SHARE, "seconds": S}``. The seconds are those of training alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments


def main() -> None:
    """Works until stdin ends."""
    output = os.fdopen(os.dup(1), "w")
    # Libraries print to stdout.
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(train(**json.loads(line))), file=output, flush=True)


def train(train: str, test: str, model: str, seed: int, iterations: int) -> dict[str, Any]:
    """Trains on a file of rows and returns the accuracy on another."""
    rows, tested = (_read(Path(path)) for path in (train, test))
    found = SetFitModel.from_pretrained(model, device="cpu")
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            batch_size=16,
            num_epochs=1,
            num_iterations=iterations,
            seed=seed,
            save_strategy="no",
            report_to="none",
            show_progress_bar=False,
        )
        trainer = Trainer(model=found, args=arguments, train_dataset=Dataset.from_list(rows))
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    predicted = found.predict([row["text"] for row in tested], show_progress_bar=False)
    correct = sum(str(label) == row["label"] for label, row in zip(predicted, tested, strict=True))
    return {"accuracy": correct / len(tested), "seconds": seconds}


def _read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


if __name__ == "__main__":
    main()

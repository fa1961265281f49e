"""Input texts of the benchmark programs. Requires the standard library alone."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEMO_TEXTS = ROOT / "training/demo/train.jsonl"
FORMAT_HELP = "JSON lines with a field `text`, or one text per line; optionally .gz"


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file; every row has at least the field ``text``."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as lines:
        content = [line.rstrip("\n") for line in lines]
    if ".json" in "".join(path.suffixes):
        return [json.loads(line) for line in content]
    return [{"text": line} for line in content]


def read_texts(path: Path) -> list[str]:
    """Returns the texts of a file, without their labels."""
    return [row["text"] for row in read(path)]


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    """Writes texts in the format that the load generators read; returns the path."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def with_long_texts(texts: Sequence[str]) -> list[str]:
    """Returns the texts with every tenth one concatenated with the three that follow it."""
    return [
        " ".join([text, *(texts[(number + step) % len(texts)] for step in (1, 2, 3))]) if number % 10 == 0 else text
        for number, text in enumerate(texts)
    ]

"""The texts that the benchmark programs work on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a file, each with at least a ``text``."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as lines:
        content = [line.rstrip("\n") for line in lines]
    if ".json" in "".join(path.suffixes):
        return [json.loads(line) for line in content]
    return [{"text": line} for line in content]


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    """Writes texts as the clients read them."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path

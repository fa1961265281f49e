"""Files of the configuration in the guide to training that teaches the embedding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

_QUESTIONS = {
    "Where is my parcel?": "Open the tracking page and enter the number of your order.",
    "How do I change my password?": "Choose Security in the settings, then Change password.",
    "Can I pay by invoice?": "Invoices are available to companies; ask our sales team.",
    "What does the warranty cover?": "The warranty covers faults of material for two years.",
}


def write_search_data(folder: Path) -> None:
    """Writes the files, four rows each, into a folder."""
    pairs = list(_QUESTIONS.items())
    _write(folder / "questions.jsonl", *({"a": question, "b": answer} for question, answer in pairs))
    _write(folder / "scored.jsonl", *({"a": a, "b": b, "score": n} for n, (a, b) in enumerate(pairs, start=1)))
    _write(folder / "help_corpus.jsonl", *({"id": str(n), "title": "", "text": b} for n, (_, b) in enumerate(pairs)))
    queries = [{"id": f"q{n}", "text": a, "split": "dev"} for n, (a, _) in enumerate(pairs)]
    _write(folder / "help_queries.jsonl", *queries)
    _write(folder / "help_qrels.jsonl", *({"query": f"q{n}", "doc": str(n), "score": 1} for n in range(4)))


def _write(path: Path, *rows: Mapping[str, object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

"""A finished run without a model: the input files of the training report and the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from polyhead_training.abstain_config import AbstainConfig
from polyhead_training.config import Config, DataConfig
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.evaluation.encodings import forms
from polyhead_training.evaluation.evaluate import Split, evaluate_run
from polyhead_training.evaluation.similarity import Correlations, FormCorrelations, Similarity
from polyhead_training.model_config import HeadConfig, ModelConfig
from polyhead_training.model_types import SELECTION

HOSTILE = "<script>alert('no')</script> & `|more`"
HEADS = (
    HeadConfig(name="topic", kind="softmax", labels=("app", HOSTILE, "support")),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive"), threshold="best"),
    HeadConfig(name="urgent", kind="sigmoid", labels=("no", "yes")),
)
OTHER_KINDS = (
    HeadConfig(name="tags", kind="multilabel", labels=("app", HOSTILE, "support"), threshold="best"),
    HeadConfig(name="stars", kind="ordinal", labels=("1", "2", "3", "4")),
    HeadConfig(name="price", kind="regression"),
)


# Files of this process by what they were made from: most tests start from the same evaluation.
_files: dict[str, dict[str, str]] = {}


def write_finished_run(
    folder: Path, heads: Sequence[HeadConfig] = HEADS, abstain: Mapping[str, AbstainConfig] | None = None
) -> Path:
    """Writes the files of a run except the model and the tokenizer; the head ``urgent`` has no labels."""
    key = repr((list(heads), abstain))
    if key not in _files:
        _files[key] = _contents(heads, abstain)
    for name, content in _files[key].items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def _contents(heads: Sequence[HeadConfig], abstain: Mapping[str, AbstainConfig] | None) -> dict[str, str]:
    """Returns the content of each file by its name."""
    shorter = [FormCorrelations(form, 0.8, 0.9) for form in forms(32, (16,))]
    similarity = Similarity(40, before=Correlations(0.8674, 0.86), after=Correlations(0.8551, None), forms=shorter)
    splits = {"validation": _split(heads, 80, 1), "test": _split(heads, 120, 2)}
    evaluation = evaluate_run(heads, splits, similarity, abstain=abstain)
    config = Config(name="tiny", model=ModelConfig(heads=tuple(heads)), data=DataConfig(train=("a.jsonl",)))
    described = [
        {
            "name": head.name,
            "kind": head.kind,
            "labels": list(head.labels or ()),
            "temperature": evaluation.temperatures[head.name],
            "threshold": evaluation.thresholds[head.name] if head.kind == "sigmoid" else None,
            "thresholds": evaluation.thresholds[head.name] if head.kind == "multilabel" else None,
            **(
                {"abstention": asdict(evaluation.abstentions[head.name].promise)}
                if head.name in (abstain or {})
                else {}
            ),
        }
        for head in heads
    ]
    run = {
        "format_version": 1,
        "name": "tiny",
        "heads": described,
        "config": config.model_dump(mode="json"),
        "built_with": {"python": "3.11.2", "torch": "2.13.0"},
        "created": "2026-01-02T03:04:05+00:00",
    }
    documents = {"run": run, "evaluation": evaluation.to_json(), "data": _data(heads)}
    return {
        **{f"{name}.json": json.dumps(content) for name, content in documents.items()},
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in _metrics(heads)),
    }


def _split(heads: Sequence[HeadConfig], rows: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    targets, logits = {}, {}
    for head in heads:
        width = len(head.labels or ())
        if head.kind in ("multilabel", "ordinal", "regression"):
            targets[head.name], logits[head.name] = _other_answers(head.kind, width, rows, rng)
            continue
        true = rng.integers(0, width, rows)
        found = (np.eye(width)[true] * 2 + rng.normal(0, 1.5, (rows, width))).astype(np.float32)
        logits[head.name] = found if head.kind == "softmax" else found[:, 1:] - found[:, :1]
        targets[head.name] = np.full(rows, UNLABELLED) if head.name == "urgent" else true
    texts = [f"{HOSTILE} {number} {'long ' * 100}" for number in range(rows)]
    locations = [(Path("rows.jsonl"), number + 1) for number in range(rows)]
    return Split(texts, locations, targets, logits)


def _other_answers(kind: str, width: int, rows: int, rng: np.random.Generator) -> tuple[Any, Any]:
    if kind == "regression":
        prices = rng.normal(100, 10, rows)
        return prices, (prices + rng.normal(0, 5, rows))[:, None].astype(np.float32)
    if kind == "multilabel":
        marks = rng.integers(0, 2, (rows, width))
        return marks, (marks * 4 - 2 + rng.normal(0, 1.5, (rows, width))).astype(np.float32)
    stars = rng.integers(0, width, rows)
    noisy = stars[:, None] + rng.normal(0, 0.7, (rows, 1))
    return stars, (3 * (noisy - np.arange(width - 1) - 0.5)).astype(np.float32)


def _metrics(heads: Sequence[HeadConfig]) -> list[dict[str, Any]]:
    empty: dict[str, float | None] = {"accuracy": None, "macro_f1": None, "nll": None}
    lines: list[dict[str, Any]] = []
    for step in (10, 20, 30):
        stage = "first" if step < 20 else "second"
        losses = {head.name: 1 / step for head in heads}
        line = {"step": step, "seconds": step / 2, "stage": stage}
        distillation = {"distillation": 0.01} if stage == "second" else {}
        lines.append({**line, "loss": 3 / step, "losses": losses, **distillation, "learning_rate": 1e-3, "tokens": 99})
        found: dict[str, float | None] = {"accuracy": step / 40, "macro_f1": step / 50, "nll": 0.5}
        scores = {head.name: empty if head.name == "urgent" else found for head in heads}
        scores |= {head.name: {SELECTION[head.kind]: step / 60} for head in heads if head in OTHER_KINDS}
        lines.append({**line, "epoch": 1, "validation": scores})
    return lines


def _data(heads: Sequence[HeadConfig]) -> dict[str, Any]:
    def split(rows: int) -> dict[str, Any]:
        return {
            "rows": rows,
            "unlabelled": 0,
            "heads": {
                head.name: {
                    "labelled": rows,
                    "majority_baseline": 0.5,
                    "labels": {label: rows // len(head.labels or ()) for label in head.labels or ()},
                }
                for head in heads
            },
            "tokens": {"p50": 12, "p95": 40, "max": 300, "truncated": 0.0125, "lost": 0.004} if rows else None,
            "duplicates": {"exact": 4, "conflicting": 1},
        }

    tokens = {"p50": 12, "p95": 40, "max": 300, "truncated": 0.0125, "lost": 0.004}
    source = {"name": "pairs", "kind": "scored_pairs", "loss": "cosent", "rows": 2000, "texts": 3900}
    source |= {"tokens": tokens, "duplicates": 2, "conflicting": 0, "scores": [0.0, 2.5, 5.0]}
    leak = {"splits": ["train", "test"], "exact": 1, "near": 2, "examples": [["a.jsonl:3", "b.jsonl:9"]]}
    return {
        "splits": {"train": split(1200), "validation": split(80), "test": split(0)},
        "leakage": [leak],
        "embedding": [source],
        "warnings": [f"3 texts of test occur in train: {HOSTILE}"],
    }

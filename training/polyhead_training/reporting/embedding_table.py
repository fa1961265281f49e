"""Table of the sentence embedding's quality before and after training, by its dimensions and encoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyhead_training.measures import show
from polyhead_training.terminal import format_table

HEADER = ["embedding", "dimensions", "encoding", "metric", "before", "after"]
# Names of the metrics of retrieval, by their keys in evaluation.json.
_METRICS = {"ndcg_at_10": "nDCG@10", "map": "MAP", "recall_at_10": "recall@10", "recall_at_100": "recall@100"}
# The metric of the shorter forms of the embedding.
_MAIN = {"ndcg_at_10": "nDCG@10"}


def embedding_rows(similarity: Mapping[str, Any] | None, retrieval: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows of the table, in the order of ``HEADER``.

    Args:
        similarity: Content of ``similarity`` in ``evaluation.json``, if any.
        retrieval: Content of ``retrieval``, by task.
    """
    rows = []
    for form in (similarity or {}).get("forms", ()):
        values = [show(form[f"spearman_{when}"]) for when in ("before", "after")]
        rows.append(["similarity", str(form["dimensions"]), form["encoding"], "Spearman", *values])
    for name, task in retrieval.items():
        for number, result in enumerate(task["results"]):
            for key, metric in (_METRICS if number == 0 else _MAIN).items():
                values = [show(result[when][key]) for when in ("before", "after")]
                rows.append([name, str(result["dimensions"]), result["encoding"], metric, *values])
    return rows


def embedding_table(evaluation: Mapping[str, Any]) -> str:
    """Formats the table for a terminal, from the content of ``evaluation.json``; empty without evaluations."""
    rows = embedding_rows(evaluation.get("similarity"), evaluation.get("retrieval", {}))
    return format_table(HEADER, rows, numeric=["dimensions", "before", "after"]) if rows else ""

"""Compares two bundles on a file of texts.

::

    OLD, NEW, files --compare--> Comparison --rendering--> table, JSON or an HTML page
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from polyhead_bundle import Head
from polyhead_training.data.dataset import Row, read_labelled
from polyhead_training.data.target_tensors import Targets
from polyhead_training.model_config import HeadConfig

from polyhead_export.errors import SettingsError
from polyhead_export.runners import worker_threads

from .agreement import EmbeddingAgreement, HeadAgreement, embedding_agreement, head_agreement, union_labels
from .models import Answers, answer, open_model


@dataclass(frozen=True)
class Comparison:
    """How two models answer the same N texts.

    Attributes:
        old: Answers of the model in force.
        new: Answers of the candidate.
        rows: The N texts with their files and lines.
        embedding: Agreement of the embeddings.
        heads: Agreement of each head that both models have with the same kind.
        not_compared: Reason for each other head, by name.
    """

    old: Answers
    new: Answers
    rows: Sequence[Row]
    embedding: EmbeddingAgreement
    heads: Sequence[HeadAgreement]
    not_compared: Mapping[str, str]

    def changed_rows(self, head: HeadAgreement, count: int) -> list[int]:
        """Returns the first rows whose answer changed; with a regression head, those that changed most."""
        if head.changed is None:
            return [int(row) for row in np.argsort(-head.changes, kind="stable")[:count] if head.changes[row] > 0]
        return [int(row) for row in np.flatnonzero(head.changes)[:count]]


def compare(
    old: Path,
    new: Path,
    paths: Sequence[Path],
    *,
    text: str = "text",
    fields: Mapping[str, str] | None = None,
    variants: tuple[str | None, str | None] = (None, None),
) -> Comparison:
    """Compares two bundles.

    Args:
        old: Bundle of the model in force.
        new: Bundle of the candidate.
        paths: Files of texts, in a format that training reads.
        text: Field of a row that holds its text.
        fields: Field of a row that holds the true answer of a head, by name of the head, if the rows have any.
        variants: Variant of the old and of the new model; None for int8, or fp32 if the bundle has no int8.

    Raises:
        BundleError: A directory is not a bundle, or was changed.
        DataError: Rows cannot be read, or have labels that neither model knows; the error names them.
        SettingsError: A file, a variant or a head is missing, or there are fewer than two texts.
        ContentError: A graph cannot be run.
    """
    models = [open_model(path, variant) for path, variant in zip((old, new), variants, strict=True)]
    heads = [{head.name: head for head in found.manifest.heads} for found, _ in models]
    both, not_compared = _compared(*heads)
    described = _described(both, fields or {})
    for path in paths:
        if not path.exists():
            raise SettingsError(path, "no such file")
    rows = read_labelled(paths, text, list(described.values()), setting="--text")
    if len(rows) < 2:
        raise SettingsError(paths[0], "has fewer than two texts")
    truth = _truth(rows, described)
    texts = [row.text for row in rows]
    with worker_threads() as threads:
        old_answers, new_answers = (
            answer(found, variant, texts, threads, f"{found.model_id} {variant}") for found, variant in models
        )
    return Comparison(
        old=old_answers,
        new=new_answers,
        rows=rows,
        embedding=_embedding(old_answers, new_answers),
        heads=[
            head_agreement(
                one, other, old_answers.outputs[one.output], new_answers.outputs[other.output], truth.get(one.name)
            )
            for one, other in both
        ],
        not_compared=not_compared,
    )


def _compared(old: Mapping[str, Head], new: Mapping[str, Head]) -> tuple[list[tuple[Head, Head]], dict[str, str]]:
    reasons = {name: "only the new model has it" for name in new if name not in old}
    reasons |= {name: "only the old model has it" for name in old if name not in new}
    for name in old.keys() & new.keys():
        if old[name].kind != new[name].kind:
            reasons[name] = f"{old[name].kind} in the old model, {new[name].kind} in the new one"
    both = [(head, new[name]) for name, head in old.items() if name not in reasons]
    return both, dict(sorted(reasons.items()))


def _described(both: Sequence[tuple[Head, Head]], fields: Mapping[str, str]) -> dict[str, HeadConfig]:
    """Returns how training would read the true answers of the heads that have a field."""
    labels = {one.name: (one.kind, union_labels(one, other)) for one, other in both}
    described = {}
    for name, field in fields.items():
        if name not in labels:
            known = ", ".join(labels) or "none"
            raise SettingsError(Path(name), f"is not a head that both models have; they have {known}")
        kind, known_labels = labels[name]
        if kind == "regression":
            raise SettingsError(Path(name), "is a regression head, for which no accuracy is computed")
        try:
            described[name] = HeadConfig(name=name, kind=kind, field=field, labels=known_labels)
        except ValueError:
            raise SettingsError(Path(name), f"has other labels in each model, so {field!r} cannot be read") from None
    return described


def _truth(rows: Sequence[Row], described: Mapping[str, HeadConfig]) -> dict[str, NDArray[np.int64]]:
    if not described:
        return {}
    targets = Targets.encode([row.labels for row in rows], list(described.values()))
    return dict(zip(described, targets.arrays(), strict=True))


def _embedding(old: Answers, new: Answers) -> EmbeddingAgreement:
    manifests = old.bundle.manifest, new.bundle.manifest
    vectors = (side.outputs[side.bundle.manifest.embedding.output] for side in (old, new))
    spaces = {
        manifest.variants[side.variant].fingerprints.embedding_space
        for manifest, side in zip(manifests, (old, new), strict=True)
    }
    return embedding_agreement(*vectors, same_space=len(spaces) == 1)

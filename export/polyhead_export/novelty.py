"""What a run and a bundle state about their texts: the novelty of others, and a reference for traffic.

Imports no torch: a bundle is also verified where it is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from polyhead_bundle import NOVELTY, Bundle, Check, HeadReference, Novelty, Reference

from .errors import ContentError
from .layout import EMBEDDING_OUTPUT
from .runners import Outputs

if TYPE_CHECKING:
    from polyhead_training.evaluation.novelty import NoveltyModel
    from polyhead_training.runs.run_directory import Run


def read_novelty(run: Run) -> Novelty | None:
    """Reads what decides the novelty of texts; returns None for a run without it.

    Raises:
        RunError: ``run.json`` or ``novelty.npy`` is damaged.
    """
    from polyhead_training.errors import RunError

    found = run.content.get("novelty")
    if found is None:
        return None
    try:
        novelty = Novelty(
            centroids=int(found["centroids"]),
            variances=tuple(map(float, found["variances"])),
            noise=float(found["noise"]),
            percentiles=tuple(map(float, found["percentiles"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(run.path / "run.json", f"novelty: is damaged ({error}); train again") from None
    try:
        _read_matrix(run.path / NOVELTY, novelty, run.model.config.embedding_size())
    except ContentError as error:
        raise RunError(error.path, f"{error.reason}; train again") from None
    return novelty


def read_reference(run: Run) -> Reference | None:
    """Reads what the model answered on its validation texts; returns None for a run that does not state it.

    Raises:
        RunError: ``run.json`` is damaged.
    """
    from polyhead_training.errors import RunError

    found = run.content.get("reference")
    if found is None:
        return None
    try:
        heads = {
            name: HeadReference(*(tuple(map(float, head[field])) for field in ("answers", "confidence", "edges")))
            for name, head in found["heads"].items()
        }
        moments = (tuple(map(float, found[field])) for field in ("embedding_mean", "embedding_spread"))
        tokens = tuple(map(float, found["tokens"]))
        return Reference(
            int(found["rows"]), heads, tokens, float(found["truncated"]), float(found["unknown_tokens"]), *moments
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(run.path / "run.json", f"reference: is damaged ({error}); train again") from None


def require_novelty(found: Bundle) -> None:
    """Rejects a bundle whose ``novelty.npy`` is not the matrix that the manifest describes.

    Raises:
        ContentError: Names the reason.
    """
    if found.manifest.novelty is not None:
        _read_matrix(found.file(NOVELTY), found.manifest.novelty, found.manifest.embedding.dimensions)


def novelty_model(folder: Path, novelty: Novelty | None, dimensions: int) -> NoveltyModel | None:
    """Returns what computes the novelty of embeddings; None without any.

    Args:
        folder: Folder of ``novelty.npy``, a run or a bundle.
        novelty: What the manifest says about it.
        dimensions: Those of the embedding.
    """
    from polyhead_training.evaluation.novelty import NoveltyModel

    if novelty is None:
        return None
    matrix = _read_matrix(folder / NOVELTY, novelty, dimensions)
    return NoveltyModel(matrix, np.asarray(novelty.variances), novelty.noise, np.asarray(novelty.percentiles))


def compare_novelty(pairs: Sequence[tuple[Outputs, Outputs]], novelty: NoveltyModel, limit: float) -> Check:
    """Check ``novelty_difference``: mean absolute difference of the novelty of texts.

    Args:
        pairs: Outputs of a graph and of the trained model for the same texts.
        novelty: Computes it.
        limit: The limit.
    """
    ours, theirs = (np.concatenate([pair[side][EMBEDDING_OUTPUT] for pair in pairs]) for side in (0, 1))
    return Check("novelty_difference", float(np.abs(novelty.score(ours) - novelty.score(theirs)).mean()), limit)


def _read_matrix(path: Path, novelty: Novelty, dimensions: int) -> NDArray[np.float16]:
    try:
        matrix: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ContentError(path, f"cannot be read: {error}") from error
    if matrix.dtype != np.float16 or matrix.shape != novelty.shape(dimensions) or not np.isfinite(matrix).all():
        raise ContentError(path, f"is not a matrix of {novelty.shape(dimensions)} float16")
    return matrix

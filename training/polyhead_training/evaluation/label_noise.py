"""Labels that are likely mistakes: rows for which a model that was trained without them confidently predicts another.

::

    out-of-fold logits --probabilities--> mean probability of each label in its own rows: its threshold
                       --------------------> rows with another label whose prediction reaches its threshold
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyhead_training.data.labels import UNLABELLED
from polyhead_training.model_config import HeadConfig
from polyhead_training.model_types import CLASS_KINDS

from .evaluate import Split
from .probabilities import log_probabilities

# Fewer rows of a label, and the models that predict for them have not seen it.
_MIN_ROWS = 2


def label_noise(heads: Sequence[HeadConfig], split: Split, temperatures: Mapping[str, float]) -> dict[str, Any]:
    """Finds rows whose label disagrees with a confident out-of-fold prediction.

    A prediction is confident when its probability reaches the mean probability that the label has in its own rows
    (confident learning: Northcutt et al., arXiv 1911.00068, section 3.1).

    Args:
        heads: The heads.
        split: The rows with their out-of-fold logits.
        temperatures: Divisor of each head's logits, by head name.

    Returns:
        The content of ``label_noise.json``: for each head with one label per row, by name, the number of rows examined
        (``rows``) and found (``found``), the threshold of each label (``thresholds``), how often each label was given
        and another predicted (``pairs``), and the rows (``suspects``), the clearest first. Rows of a label with a
        single row are not examined.
    """
    return {head.name: _head_noise(head, split, temperatures[head.name]) for head in heads if head.kind in CLASS_KINDS}


def _head_noise(head: HeadConfig, split: Split, temperature: float) -> dict[str, Any]:
    labels, targets = head.labels or (), split.targets[head.name]
    counts = np.bincount(targets[targets != UNLABELLED], minlength=len(labels))  # (labels,)
    rows = np.flatnonzero((targets != UNLABELLED) & (counts[targets] >= _MIN_ROWS))  # (R,)
    given = targets[rows]  # (R,)
    values = np.exp(log_probabilities(head.kind, split.logits[head.name][rows], temperature))  # (R, labels)
    own = values[np.arange(len(rows)), given]  # (R,)
    known = [index for index in range(len(labels)) if counts[index] >= _MIN_ROWS]
    thresholds = np.full(len(labels), np.inf)
    thresholds[known] = [own[given == index].mean() for index in known]
    predicted = values.argmax(axis=1) if len(rows) else given  # (R,)
    top = values[np.arange(len(rows)), predicted]  # (R,)
    suspects = np.flatnonzero((predicted != given) & (top >= thresholds[predicted]))  # (S,)
    order = suspects[np.argsort(own[suspects] - top[suspects], kind="stable")]
    pairs = Counter((labels[given[index]], labels[predicted[index]]) for index in order)
    return {
        "rows": len(rows),
        "found": len(order),
        "thresholds": {labels[index]: round(float(thresholds[index]), 6) for index in known},
        "pairs": [
            {"label": label, "predicted": answer, "rows": count} for (label, answer), count in pairs.most_common()
        ],
        "suspects": [
            {
                "path": str(split.locations[rows[index]][0]),
                "line": split.locations[rows[index]][1],
                "text": split.texts[rows[index]],
                "label": labels[given[index]],
                "predicted": labels[predicted[index]],
                "label_probability": round(float(own[index]), 6),
                "predicted_probability": round(float(top[index]), 6),
            }
            for index in order
        ],
    }

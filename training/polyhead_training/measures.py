"""The most important metrics of each kind of head in ``evaluation.json``, for the terminal, reports and model cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Measures(NamedTuple):
    """Metrics of a kind of head in a table.

    Attributes:
        keys: Keys in ``evaluation.json`` by title: first the metric by which the head is judged, which has an interval,
            last its baseline.
        note: What a reader may not know about them.
        is_share: Whether the first metric is a share, 0 to 1, of which more is better; else it is an error.
        baseline: Description of the baseline.
    """

    keys: dict[str, str]
    note: str
    is_share: bool
    baseline: str

    @property
    def main(self) -> str:
        """Key of the metric by which the head is judged."""
        return next(iter(self.keys.values()))

    @property
    def required(self) -> set[str]:
        """Keys without which the head cannot be judged."""
        return {self.main, [*self.keys.values()][-1]}


_CALIBRATION = "ECE: expected calibration error, lower is better."
_MAJORITY = "Majority: the score of always predicting the most frequent label"
_CLASSES = Measures(
    {"accuracy": "accuracy", "macro-F1": "macro_f1", "ECE": "ece", "majority": "majority_baseline"},
    f"{_CALIBRATION} {_MAJORITY}.",
    is_share=True,
    baseline="majority baseline",
)
_MEDIAN = "Median: the MAE of always predicting the median."
_MEASURES = {
    "multilabel": Measures(
        {
            "micro-F1": "micro_f1",
            "macro-F1": "macro_f1",
            "mAP": "mean_average_precision",
            "ECE": "ece",
            "majority": "majority_baseline",
        },
        f"mAP: mean average precision of the labels. {_CALIBRATION} {_MAJORITY} alone.",
        is_share=True,
        baseline="majority baseline",
    ),
    "ordinal": Measures(
        {
            "MAE": "mae",
            "QWK": "qwk",
            "Spearman": "spearman",
            "accuracy": "accuracy",
            "ECE": "ece",
            "median": "mae_baseline",
        },
        f"MAE: mean absolute error. QWK: quadratic weighted kappa. {_CALIBRATION} {_MEDIAN}",
        is_share=False,
        baseline="median baseline",
    ),
    "regression": Measures(
        {
            "MAE": "mae",
            "RMSE": "rmse",
            "R2": "r2",
            "Spearman": "spearman",
            "Pearson": "pearson",
            "median": "mae_baseline",
        },
        f"MAE: mean absolute error. RMSE: root of the mean squared error. {_MEDIAN}",
        is_share=False,
        baseline="median baseline",
    ),
}


def measures_of(found: Mapping[str, Any]) -> Measures:
    """Returns the metrics to show for a head's part of ``evaluation.json``."""
    return _MEASURES.get(found.get("kind", ""), _CLASSES)


def metric_tables(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yields a table for each set of metrics: titles of the metrics, and rows of split, head, rows and metrics.

    Args:
        splits: Parts of ``evaluation.json`` by split and head name.
    """
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for split, heads in splits.items():
        for name, found in heads.items():
            measures = measures_of(found)
            values = [show(found.get(key)) for key in measures.keys.values()]
            if interval := found["intervals"].get(measures.main):
                values[0] += " [{:.4f}, {:.4f}]".format(*interval)
            tables.setdefault(tuple(measures.keys), []).append([split, name, f"{found['rows']:,}", *values])
    for titles, rows in tables.items():
        yield list(titles), rows


def show(value: float | None) -> str:
    """Formats a metric."""
    return "-" if value is None else f"{value:.4f}"


def show_spread(summary: Mapping[str, Any] | None) -> str:
    """Formats the mean and the standard deviation of a metric over several runs."""
    if summary is None:
        return "-"
    return show(summary["mean"]) + ("" if summary["sd"] is None else f" ± {summary['sd']:.4f}")

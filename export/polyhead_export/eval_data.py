"""Evaluation data: held-out labelled rows, with the trained model's outputs for them.

::

    files --training's reader--> rows --tokenizer--> ids --torch fp32--> reference --gate--> accuracy lost by a variant
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polyhead_bundle import Head
from polyhead_training.data.dataset import read_labelled
from polyhead_training.data.target_tensors import Targets
from polyhead_training.data.vocabulary import MAX_UNREAD
from polyhead_training.errors import RunError
from polyhead_training.evaluation.prediction_sets import in_sets
from polyhead_training.evaluation.probabilities import answers, is_labelled, labelled
from polyhead_training.evaluation.scoring import score
from polyhead_training.evaluation.selective import confident_answers
from polyhead_training.model_config import HeadConfig
from polyhead_training.runs.run_directory import Run
from polyhead_training.suggestions import spelling_hint
from polyhead_training.tokenization import encode, load_tokenizer, pad, unread_texts

from .errors import SettingsError
from .runners import Outputs, Runner, run_all, torch_runner

_BATCH_SIZE = 16
# Training sets the threshold of a head that abstains just above the confidence of a validation row. If that row is in
# the evaluation data, rounding must not decide whether it is answered.
_ROUNDING = 1e-5
# Metrics that a variant may lose by, and the limits for them, by kind of head.
_LIMITS = {"accuracy": "accuracy_drop", "macro_f1": "macro_f1_drop"}
DROPS: dict[str, dict[str, str]] = {
    "softmax": _LIMITS,
    "sigmoid": _LIMITS,
    "multilabel": {"micro_f1": "accuracy_drop", "macro_f1": "macro_f1_drop"},
    "ordinal": {"accuracy": "accuracy_drop", "macro_f1": "macro_f1_drop", "qwk": "macro_f1_drop"},
    "regression": {"r2": "r2_drop"},
}


@dataclass(frozen=True)
class EvalData:
    """Labelled rows.

    Attributes:
        ids: Token ids of the N texts.
        targets: True answers for each head, as in training's ``Targets.arrays``.
        reference: The trained model's outputs, (N, H) and (N, logits).
        pad_token_id: Token that pads the shorter texts of a batch.
    """

    ids: Sequence[Sequence[int]]
    targets: tuple[NDArray[Any], ...]
    reference: Outputs
    pad_token_id: int

    def labelled_rows(self, column: int) -> int:
        """Number of rows that have an answer for a head."""
        return int(is_labelled(self.targets[column]).sum())

    def sample(self, count: int) -> EvalData:
        """Returns about ``count`` evenly spaced rows."""
        step = -(-len(self.ids) // count)
        reference = {name: values[::step] for name, values in self.reference.items()}
        targets = tuple(answers[::step] for answers in self.targets)
        return EvalData(self.ids[::step], targets, reference, self.pad_token_id)

    def predict(self, runner: Runner, description: str = "") -> Outputs:
        """Runs a graph on the rows; the outputs are in the order of the rows."""
        return predict(runner, self.ids, self.pad_token_id, description)

    def score(self, outputs: Outputs, head: Head, column: int) -> dict[str, Any]:
        """Computes the metrics of one head, with its temperature and thresholds, in the form of ``evaluation.json``."""
        return score(
            head.kind,
            head.labels,
            outputs[head.output],
            self.targets[column],
            temperature=head.temperature,
            threshold=_threshold(head),
            intervals=False,
        ).to_json()

    def answered(self, outputs: Outputs, head: Head, column: int) -> tuple[int, int]:
        """Counts the labelled rows on which a head with a threshold does not abstain, and those of them it gets right.

        Args:
            outputs: Outputs for the rows.
            head: A head that abstains.
            column: Its index among the heads.
        """
        found = confident_answers(
            head.kind, outputs[head.output], self.targets[column], head.temperature, _threshold(head)
        )
        threshold = head.abstains_below or 0.0
        if threshold:
            threshold += min(_ROUNDING, (1 - threshold) / 2)
        is_answered = found.confidence >= threshold
        return int(is_answered.sum()), int(found.correct[is_answered].sum())

    def covered(self, outputs: Outputs, head: Head, column: int, threshold: float) -> int:
        """Counts the labelled rows whose true label is in the prediction set of a softmax head.

        Args:
            outputs: Outputs for the rows.
            head: The head.
            column: Its index among the heads.
            threshold: Lowest probability of a label in a set.
        """
        logits, targets = labelled(outputs[head.output], self.targets[column])
        inside = in_sets(logits, threshold, head.temperature)  # (rows, labels)
        return int(inside[np.arange(len(targets)), targets].sum())

    def worst_accuracy_drop(self, runner: Runner, heads: Sequence[Head], description: str = "") -> float:
        """Largest loss of any head of a graph against the trained model, 0 when no head loses any.

        The loss is that of the head's first metric in ``DROPS``.
        """
        outputs = self.predict(runner, description)
        drops = []
        for column, head in enumerate(heads):
            if self.labelled_rows(column):
                metric = next(iter(DROPS[head.kind]))
                ours, theirs = (self.score(found, head, column)[metric] for found in (outputs, self.reference))
                drops.append((theirs or 0.0) - (ours or 0.0))
        # A sample of sparsely labelled rows may contain no label at all.
        return max([0.0, *drops])


def read_eval_data(run: Run, heads: Sequence[Head], paths: Sequence[Path], reference: Runner | None = None) -> EvalData:
    """Reads labelled files as training does, and runs the trained model on them.

    Args:
        run: The run.
        heads: Its heads with their calibration.
        paths: The files.
        reference: Runner of the trained model; None opens one.

    Raises:
        DataError: Rows cannot be read; the error names them.
        SettingsError: A file is missing, no row has a label, or the tokenizer reads almost none of the texts.
        RunError: ``run.json`` does not say which fields to read.
    """
    for path in paths:
        if not path.exists():
            siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
            raise SettingsError(path, f"evaluation data not found{spelling_hint(path.name, siblings)}")
    text, described = _fields(run, heads)
    rows = read_labelled(paths, text, described)
    targets = Targets.encode([row.labels for row in rows], described)
    if not targets.labelled().any():
        raise SettingsError(paths[0], "no row has a label of any head; check the names of the fields")
    model = run.model
    tokenizer = load_tokenizer(run.tokenizer_path)
    texts = [row.text for row in rows]
    plain = list(encode(tokenizer, texts, model.config.max_tokens))
    if len(unread := unread_texts(tokenizer, texts, plain)) > MAX_UNREAD * len(texts):
        reason = f"the model reads {len(unread):,} of {len(texts):,} texts as special and unknown tokens alone"
        hint = "pass rows in the language that the model was made for"
        raise SettingsError(rows[unread[0]].path, f"{reason}, the first in line {rows[unread[0]].line}; {hint}")
    prefix = run.prefix
    ids = list(encode(tokenizer, [prefix + text for text in texts], model.config.max_tokens)) if prefix else plain
    outputs = predict(
        reference or torch_runner(model), ids, model.config.pad_token_id, "trained model: evaluation data"
    )
    return EvalData(ids, targets.arrays(), outputs, model.config.pad_token_id)


def _fields(run: Run, heads: Sequence[Head]) -> tuple[str, list[HeadConfig]]:
    """Returns the field of a row that holds the text, and the heads with the fields that hold their labels.

    The configuration is not validated as a whole: an imported run has no training data, so it would be invalid.
    """
    config = run.content["config"]
    try:
        text = str(config["data"]["text"])
        configured = [HeadConfig.model_validate(head) for head in config["model"]["heads"]]
        return text, [
            one.model_copy(update={"labels": head.labels or None}) for one, head in zip(configured, heads, strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(run.path / "run.json", f"config: does not match this release ({error}); train again") from None


def predict(runner: Runner, ids: Sequence[Sequence[int]], pad_token_id: int, description: str = "") -> Outputs:
    """Runs N texts in batches of similar length; the outputs are in the order of the texts.

    Args:
        runner: The runner.
        ids: Token ids of the texts.
        pad_token_id: Token that pads the shorter texts of a batch.
        description: Text of the progress bar; empty for none.
    """
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    batches = [order[start : start + _BATCH_SIZE] for start in range(0, len(order), _BATCH_SIZE)]
    padded = (pad([ids[row] for row in rows], pad_token_id) for rows in batches)
    outputs: dict[str, NDArray[Any]] = {}
    for rows, found in zip(batches, run_all(runner, padded, len(batches), description), strict=True):
        for name, values in found.items():
            outputs.setdefault(name, np.zeros((len(ids), values.shape[1]), np.float32))[rows] = values
    return outputs


def predictions(outputs: Outputs, head: Head) -> NDArray[Any]:
    """What a head predicts for each of B texts, as in training's ``answers``."""
    return answers(head.kind, outputs[head.output], head.temperature, _threshold(head))


def _threshold(head: Head) -> float | tuple[float, ...]:
    return head.thresholds or (0.5 if head.threshold is None else head.threshold)

"""Held-out labelled rows, and what the trained model answers to them.

::

    files --training's reader--> rows --tokenizer--> ids --torch fp32--> reference --gate--> what a variant loses
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polyhead_bundle import Head
from polyhead_training.config import HeadConfig
from polyhead_training.data.dataset import read_labelled
from polyhead_training.errors import RunError
from polyhead_training.evaluation.metrics import HeadScore, score
from polyhead_training.evaluation.probabilities import answers
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.runs.run_directory import Run
from polyhead_training.tokenization import encode, load_tokenizer, pad

from .errors import SettingsError
from .runners import Answers, Runner, torch_pass

_BATCH = 16


@dataclass(frozen=True)
class Labelled:
    """Rows with labels.

    Attributes:
        ids: Token ids of the N texts.
        targets: (N, heads) index of each head's true label, ``UNLABELLED`` where there is none.
        reference: The trained model's answers, (N, H) and (N, outputs).
        pad_token_id: Token that fills up the shorter texts of a batch.
    """

    ids: Sequence[Sequence[int]]
    targets: NDArray[np.int64]
    reference: Answers
    pad_token_id: int

    def known(self, column: int) -> int:
        """Rows that have a label for a head."""
        return int((self.targets[:, column] != UNLABELLED).sum())

    def part(self, count: int) -> Labelled:
        """About ``count`` of the rows, evenly spread."""
        step = -(-len(self.ids) // count)
        reference = {name: values[::step] for name, values in self.reference.items()}
        return Labelled(self.ids[::step], self.targets[::step], reference, self.pad_token_id)

    def answer(self, run: Runner) -> Answers:
        """What a graph answers to the rows, in their order, in batches of like length."""
        return answer_rows(run, self.ids, self.pad_token_id)

    def score(self, given: Answers, head: Head, column: int) -> HeadScore:
        """How well a head did, with its temperature and threshold."""
        return score(
            head.kind,
            head.labels,
            given[head.output],
            self.targets[:, column],
            temperature=head.temperature,
            threshold=0.5 if head.threshold is None else head.threshold,
        )


def read_rows(run: Run, heads: Sequence[Head], paths: Sequence[Path]) -> Labelled:
    """Reads labelled files as training does, and lets the trained model answer them.

    Raises:
        DataError: Rows cannot be read; it names them.
        SettingsError: There is no such file, or no row in it has a label.
        RunError: ``run.json`` does not say which fields to read.
    """
    for path in paths:
        if not path.is_file():
            raise SettingsError(path, "there is no such labelled file")
    text, described = _fields(run, heads)
    rows = read_labelled(paths, text, described)
    places = [{label: place for place, label in enumerate(head.labels)} for head in heads]
    targets = np.array(
        [
            [UNLABELLED if label is None else place[label] for place, label in zip(places, row.labels, strict=True)]
            for row in rows
        ],
        dtype=np.int64,
    ).reshape(len(rows), len(heads))
    if not (targets != UNLABELLED).any():
        raise SettingsError(paths[0], "no row has a label of any head; check the fields' names")
    model = run.model
    tokenizer = load_tokenizer(run.tokenizer_path)
    ids = list(encode(tokenizer, [row.text for row in rows], model.config.max_tokens))
    reference = answer_rows(torch_pass(model), ids, model.config.pad_token_id)
    return Labelled(ids, targets, reference, model.config.pad_token_id)


def _fields(run: Run, heads: Sequence[Head]) -> tuple[str, list[HeadConfig]]:
    """The field of a row that holds the text, and the heads with the fields that hold their labels.

    An imported run has no training rows, so its configuration as a whole is none that could be trained.
    """
    config = run.content["config"]
    try:
        text = str(config["data"]["text"])
        given = [HeadConfig.model_validate(head) for head in config["model"]["heads"]]
        return text, [head.model_copy(update={"labels": one.labels}) for head, one in zip(given, heads, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(run.path / "run.json", f"config: is not one of this release ({error}); train again") from None


def answer_rows(run: Runner, ids: Sequence[Sequence[int]], pad_token_id: int) -> Answers:
    """Answers of N texts in their order, run in batches of like length."""
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    found: dict[str, NDArray[Any]] = {}
    for start in range(0, len(order), _BATCH):
        numbers = order[start : start + _BATCH]
        for name, values in run(*pad([ids[number] for number in numbers], pad_token_id)).items():
            found.setdefault(name, np.zeros((len(ids), values.shape[1]), np.float32))[numbers] = values
    return found


def labels_of(given: Answers, head: Head) -> NDArray[np.integer[Any]]:
    """Index of the label that a head gives to each text, (B,)."""
    threshold = 0.5 if head.threshold is None else head.threshold
    return answers(head.kind, given[head.output], head.temperature, threshold)

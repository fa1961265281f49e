"""Answers texts with a server, through the client's stream; the only module that requires gRPC."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import polyhead_bundle as bundle
from polyhead_client import Abstention, Answer, Client, ModelInfo, PolyheadError, PredictionSets
from polyhead_server.inference import head_answers

from .answers import Answers
from .errors import EngineError
from .layout import Layout, ModelFacts
from .options import AnswerOptions, Task
from .texts import Texts

# Errors of a text itself, which a repetition does not change. Every other error ends the job.
_CODES_OF_TEXTS = ("INVALID_ARGUMENT", "OUT_OF_RANGE")
# Consecutive groups without any text to send that are held at once.
_MAX_EMPTY_GROUPS = 16


class RemoteAnnotator:
    """Answers with the model behind a server; the same ``stream`` as an ``Annotator`` has.

    Attributes:
        layout: Names and types of the columns that are added.
    """

    def __init__(self, client: Client, options: AnswerOptions) -> None:
        """Asks the server for its model.

        Args:
            client: Client of the server; it stays the caller's.
            options: What to compute.

        Raises:
            EngineError: The server does not answer.
            UsageError: The model does not fit the options.
        """
        self._client = client
        try:
            self._info = client.info()
        except PolyheadError as error:
            raise EngineError(str(error)) from error
        self.layout = Layout(_facts(self._info), options)

    def stream(self, texts: Iterable[Texts]) -> Iterator[tuple[Texts, Answers]]:
        """Yields each group of texts with its answers, in order.

        Raises:
            EngineError: The call failed, or another model answers.
        """
        groups = _Groups(texts, self._info.limits.max_characters)
        while not groups.is_exhausted:
            yield from self._call(groups)

    def _call(self, groups: _Groups) -> Iterator[tuple[Texts, Answers]]:
        parts = groups.read
        answers = self._client.stream(
            groups.texts(),
            tasks=cast(list[Task], list(self.layout.options.tasks)),
            truncation=self.layout.options.truncation,
            prompt=self.layout.options.prompt,
            include_novelty=self.layout.options.novelty,
            expected_fingerprints=self._info,
        )
        iterator = iter(answers)
        try:
            while True:
                first = next(iterator, None)
                # Groups without any text to send are complete as soon as something after them is.
                while parts and not _size(parts[0]):
                    part = parts.popleft()
                    yield part, self._unanswered(part)
                if first is None:
                    return
                part = parts.popleft()
                yield part, self._collect(part, first, iterator)
        except PolyheadError as error:
            raise EngineError(str(error)) from error
        finally:
            if close := getattr(iterator, "close", None):
                close()

    def _unanswered(self, part: Texts) -> Answers:
        answers = Answers.allocate(self.layout, len(part))
        answers.errors.update(part.errors)
        return answers

    def _collect(self, part: Texts, first: Answer, rest: Iterator[Answer]) -> Answers:
        answers = self._unanswered(part)
        rows = [row for row in range(len(part)) if row not in part.errors]
        found = [first, *(next(rest) for _ in rows[1:])]
        for row, answer in zip(rows, found, strict=True):
            if answer.error is not None:
                if answer.error.code not in _CODES_OF_TEXTS:
                    raise EngineError(f"the server failed on a text: {answer.error.code}: {answer.error.message}")
                answers.errors[row] = answer.error.message
                continue
            truncation = answer.unwrap().truncation
            answers.tokens[row] = truncation.tokens_seen
            answers.truncated[row] = truncation.truncated
        good = [(row, answer) for row, answer in zip(rows, found, strict=True) if answer.error is None]
        if good:
            self._put(answers, good)
        return answers

    def _put(self, answers: Answers, good: list[tuple[int, Answer]]) -> None:
        layout, rows = self.layout, np.array([row for row, _ in good])
        if layout.has_embedding:
            embedding = np.stack([answer.embedding for _, answer in good])
        else:
            embedding = np.zeros((len(rows), layout.facts.dimensions), np.float32)
        scores = [np.stack([_scores(head, answer) for _, answer in good]) for _, head in layout.heads]
        novelty = None
        if layout.options.novelty:
            novelty = np.array([answer.unwrap().novelty for _, answer in good], np.float32)
        answers.put(rows, embedding, scores, np.ones(len(rows), np.bool_), novelty)


def _scores(head: bundle.Head, answer: Answer) -> np.ndarray[Any, np.dtype[np.float32]]:
    found: Any = answer.head(head.name)
    if head.kind in {"sigmoid", "regression"}:
        return np.array([found.probability if head.kind == "sigmoid" else found.value], np.float32)
    scores = found.probabilities if head.kind == "ordinal" else found.scores
    by_label = {score.label: score.probability for score in scores}
    return np.array([by_label[label] for label in head.labels], np.float32)


class _Groups:
    """Groups of texts on their way to the server.

    Attributes:
        read: Groups that were read and have no answers yet; each is appended before its first text is sent.
        is_exhausted: Whether there are no more groups to read.
    """

    def __init__(self, groups: Iterable[Texts], max_characters: int) -> None:
        self.read: deque[Texts] = deque()
        self.is_exhausted = False
        self._groups = iter(groups)
        self._max_characters = max_characters

    def texts(self) -> Iterator[str]:
        """Yields the texts of one call; many groups without a text end it early, as no answer would pace them."""
        empty = 0
        for part in self._groups:
            self.read.append(part)
            empty = 0 if _size(part) else empty + 1
            # The server reads no more. One more code point shows it that the text is longer.
            for row, text in enumerate(part.values):
                if row not in part.errors:
                    yield text[: self._max_characters + 1]
            if empty >= _MAX_EMPTY_GROUPS:
                return
        self.is_exhausted = True


def _size(part: Texts) -> int:
    return len(part) - len(part.errors)


def _facts(info: ModelInfo) -> ModelFacts:
    if unknown := [head.name for head in info.heads if head.kind not in head_answers.TASKS]:
        raise EngineError(f"the head {unknown[0]} is of a kind that this release does not know: install a newer one")
    heads = tuple(
        bundle.Head(
            name=head.name,
            kind=cast(bundle.HeadKind, head.kind),
            output="",
            labels=tuple(head.labels),
            temperature=head.temperature,
            threshold=head.threshold,
            thresholds=head.thresholds,
            abstention=_abstention(head.abstention),
            prediction_sets=_prediction_sets(head.prediction_sets),
        )
        for head in info.heads
    )
    fingerprints = bundle.Fingerprints(info.fingerprints.embedding_space, dict(info.fingerprints.heads))
    match = re.search(r"-([0-9a-f]{12})$", info.model_id)
    return ModelFacts(
        model_id=info.model_id,
        digest=match[1] if match else "",
        variant=info.runtime.variant,
        runtime=f"{info.runtime.engine}/{info.runtime.device}/{info.runtime.variant}",
        fingerprints=fingerprints,
        heads=heads,
        dimensions=info.embedding.dimensions,
        normalized=info.embedding.normalized,
        max_tokens=info.limits.max_tokens,
        prompts=info.prompts,
        has_novelty=info.has_novelty,
    )


def _prediction_sets(found: PredictionSets | None) -> bundle.PredictionSets | None:
    # A server does not state the number of rows.
    return None if found is None else bundle.PredictionSets(found.coverage, found.threshold, 1)


def _abstention(found: Abstention | None) -> bundle.Abstention | None:
    if found is None:
        return None
    # A server does not state the rest, which decides nothing.
    return bundle.Abstention(found.accuracy, found.certainty, found.threshold, 0.0, found.coverage, 0, ())

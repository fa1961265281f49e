"""Lines in, JSON lines out: what the ``polyhead`` command reads and writes."""

from __future__ import annotations

import codecs
import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from polyhead_client.core.stream_state import Text
from polyhead_client.types import Answer, Classification, Result, Sentiment


class LineError(Exception):
    """A line of the input is not what was promised.

    Attributes:
        line: Its number, 1 first.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"input, line {line}: {problem}")
        self.line = line


def texts_of(lines: Iterable[bytes]) -> Iterator[Text]:
    """One text a line.

    Bytes that are not UTF-8 become lone surrogates, which the client refuses, so that such a line is answered with an
    error in its turn like any other item.
    """
    for line in _without_mark(lines):
        yield _decoded(line)


def items_of(lines: Iterable[bytes]) -> Iterator[Text]:
    """One ``{"id": ..., "text": ...}`` a line; blank lines are passed over.

    Raises:
        LineError: A line is no such object.
    """
    for number, line in enumerate(_without_mark(lines), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(_decoded(line))
        except RecursionError as error:
            raise LineError(number, "not JSON that can be read: it is nested too deeply") from error
        except ValueError as error:
            raise LineError(number, f'not JSON ({error}); write one {{"id": ..., "text": ...}} a line') from error
        if not isinstance(item, dict) or not isinstance(item.get("id"), str) or not isinstance(item.get("text"), str):
            raise LineError(number, 'not an object {"id": ..., "text": ...} with two strings')
        yield item["id"], item["text"]


def line_of(answer: Answer) -> bytes:
    """An answer as one line of JSON, in UTF-8."""
    record: dict[str, Any] = {"id": answer.item_id}
    if answer.result is not None:
        record |= _record(answer.result)
    elif answer.error is not None:
        told = dataclasses.asdict(answer.error)
        record["error"] = {name: value for name, value in told.items() if value is not None}
    # A lone surrogate has no UTF-8; with a backslash it is JSON's own escape for it.
    return json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines without the byte order mark that some programs put before UTF-8."""
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix(codecs.BOM_UTF8)


def _decoded(line: bytes) -> str:
    return line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="surrogateescape")


def _record(result: Result) -> dict[str, Any]:
    record: dict[str, Any] = {}
    if result.embedding is not None:
        record["embedding"] = [_short(number) for number in result.embedding]
    if result.classification is not None:
        record["classification"] = _classification(result.classification)
    if result.sentiment is not None:
        record["sentiment"] = _sentiment(result.sentiment)
    if result.additional_classifications:
        record["additional_classifications"] = [
            _classification(further) for further in result.additional_classifications
        ]
    if result.additional_sentiments:
        record["additional_sentiments"] = [_sentiment(further) for further in result.additional_sentiments]
    record["truncation"] = dataclasses.asdict(result.truncation)
    if result.timings is not None:
        record["timings"] = dataclasses.asdict(result.timings)
    return record


def _classification(classification: Classification) -> dict[str, Any]:
    scores = [{"label": score.label, "probability": _short(score.probability)} for score in classification.scores]
    return {"head": classification.head, "scores": scores}


def _sentiment(sentiment: Sentiment) -> dict[str, Any]:
    return {"head": sentiment.head, "probability": _short(sentiment.probability), "label": sentiment.label}


def _short(number: float | np.float32) -> float:
    """A float32 with its own shortest digits: 0.9, not the 0.8999999761581421 of the float64 that equals it."""
    return float(str(np.float32(number)))

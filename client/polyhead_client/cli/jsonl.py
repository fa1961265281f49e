"""Input and output formats of the ``polyhead`` command: lines of text or JSON in, JSON lines out."""

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
    """A line of the input is malformed.

    Attributes:
        line: Line number, starting at 1.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"input, line {line}: {problem}")
        self.line = line


def read_texts(lines: Iterable[bytes]) -> Iterator[Text]:
    """Yields each line as a text.

    Bytes that are not UTF-8 become lone surrogates. The client cannot send those, so that such a line gets an error
    answer in its position like any other item.
    """
    for line in _without_byte_order_mark(lines):
        yield _decode(line)


def read_items(lines: Iterable[bytes]) -> Iterator[Text]:
    """Yields the id and text of each ``{"id": ..., "text": ...}`` line; skips blank lines.

    Raises:
        LineError: A line is not such an object.
    """
    for number, line in enumerate(_without_byte_order_mark(lines), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(_decode(line))
        except RecursionError as error:
            raise LineError(number, "not valid JSON: nested too deeply") from error
        except ValueError as error:
            raise LineError(number, f'not valid JSON ({error}); expected {{"id": ..., "text": ...}}') from error
        if not isinstance(item, dict) or not isinstance(item.get("id"), str) or not isinstance(item.get("text"), str):
            raise LineError(number, 'not an object {"id": ..., "text": ...} with two strings')
        yield item["id"], item["text"]


def format_answer(answer: Answer) -> bytes:
    """Formats an answer as one line of JSON in UTF-8."""
    record: dict[str, Any] = {"id": answer.item_id}
    if answer.result is not None:
        record |= _result(answer.result)
    elif answer.error is not None:
        fields = dataclasses.asdict(answer.error)
        record["error"] = {name: value for name, value in fields.items() if value is not None}
    # A lone surrogate has no UTF-8 form; with a backslash it is JSON's own escape.
    return json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _without_byte_order_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Removes the byte order mark that some programs write before UTF-8."""
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix(codecs.BOM_UTF8)


def _decode(line: bytes) -> str:
    return line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="surrogateescape")


def _result(result: Result) -> dict[str, Any]:
    record: dict[str, Any] = {}
    if result.embedding is not None:
        record["embedding"] = [_shortest(number) for number in result.embedding]
    if result.classification is not None:
        record["classification"] = _classification(result.classification)
    if result.sentiment is not None:
        record["sentiment"] = _sentiment(result.sentiment)
    if result.additional_classifications:
        record["additional_classifications"] = [_classification(one) for one in result.additional_classifications]
    if result.additional_sentiments:
        record["additional_sentiments"] = [_sentiment(one) for one in result.additional_sentiments]
    record["truncation"] = dataclasses.asdict(result.truncation)
    if result.timings is not None:
        record["timings"] = dataclasses.asdict(result.timings)
    return record


def _classification(classification: Classification) -> dict[str, Any]:
    scores = [{"label": score.label, "probability": _shortest(score.probability)} for score in classification.scores]
    return {"head": classification.head, "scores": scores}


def _sentiment(sentiment: Sentiment) -> dict[str, Any]:
    return {"head": sentiment.head, "probability": _shortest(sentiment.probability), "label": sentiment.label}


def _shortest(number: float | np.float32) -> float:
    """Returns the shortest decimal of a float32: 0.9, not the 0.8999999761581421 of the equal float64."""
    return float(str(np.float32(number)))

"""Input and output formats of the ``polyhead`` command: lines of text or JSON in, JSON lines out."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from polyhead_client.core.stream_state import Text
from polyhead_client.types import Answer, ItemError

# Fields of a result in the order of a line, each if there is such an output. "polyhead info" prints the fingerprints.
_PRINTED = (
    "embedding",
    "classification",
    "sentiment",
    "additional_classifications",
    "additional_sentiments",
    "label_sets",
    "scores",
    "novelty",
    "truncation",
    "timings",
)
# Fields of a line that are read.
_READ = ("text", "id")
_EXPECTED = 'expected {"text": "..."}, with an "id" if the lines have ids'


@dataclass(frozen=True)
class LineError(ItemError):
    """The reason why a line of the input is not sent.

    Attributes:
        line: Line number, starting at 1.
    """

    line: int = 0


class _InvalidLineError(Exception):
    """A line of the input is malformed."""


def read_texts(lines: Iterable[bytes]) -> Iterator[Text]:
    """Yields each line as a text.

    Bytes that are not UTF-8 become lone surrogates. The client cannot send those, so that such a line gets an error
    answer in its position like any other item.
    """
    for line in _without_byte_order_mark(lines):
        yield _strip_line_end(line).decode(errors="surrogateescape")


def read_items(lines: Iterable[bytes]) -> Iterator[Text | Answer]:
    """Yields the text of each JSON object, with its id if it has one; skips blank lines.

    A line needs no id, as in the files of polyhead-train, unless a line before has one. Other fields, such as labels,
    are ignored. A malformed line yields its error answer, and reading continues.
    """
    has_ids = False
    for number, line in enumerate(_without_byte_order_mark(lines), start=1):
        if not line.strip():
            continue
        item: dict[str, Any] = {}
        try:
            item = _parse(line)
            has_ids = has_ids or "id" in item
            yield _text(item, has_ids)
        except _InvalidLineError as error:
            reason = "TEXT_NOT_UTF8" if isinstance(error.__cause__, UnicodeDecodeError) else "MALFORMED_LINE"
            problem = LineError("INVALID_ARGUMENT", reason, f"line {number}: {error}", line=number)
            item_id = item.get("id")
            yield Answer(item_id if isinstance(item_id, str) else "", error=problem)


def format_answer(answer: Answer) -> bytes:
    """Formats an answer as one line of JSON in UTF-8."""
    record: dict[str, Any] = {"id": answer.item_id}
    if answer.result is not None:
        fields = answer.result.to_dict()
        record |= {name: fields[name] for name in _PRINTED if fields[name] not in (None, [], ())}
    elif answer.error is not None:
        if isinstance(answer.error, LineError):
            record = {"id": answer.item_id or None, "line": answer.error.line}
        fields = answer.error.to_dict()
        record["error"] = {name: value for name, value in fields.items() if value is not None and name != "line"}
    # A lone surrogate has no UTF-8 form; with a backslash it is JSON's own escape.
    return json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    try:
        item = json.loads(_strip_line_end(line).decode(), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise _InvalidLineError(f"not valid UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}") from error
    except RecursionError as error:
        raise _InvalidLineError("not valid JSON: nested too deeply") from error
    except ValueError as error:
        raise _InvalidLineError(f"not valid JSON ({error}); {_EXPECTED}") from error
    if not isinstance(item, dict):
        raise _InvalidLineError(f"not a JSON object; {_EXPECTED}")
    return item


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        for name in _READ:
            if names.count(name) > 1:
                raise _InvalidLineError(f"the field {name!r} occurs twice")
    return fields


def _text(item: dict[str, Any], has_ids: bool) -> Text:
    text = item.get("text")
    if "text" not in item:
        raise _InvalidLineError(f'no field "text"; {_EXPECTED}')
    if not isinstance(text, str):
        raise _InvalidLineError(f'"text" is {_kind(text)}, not a string')
    if not has_ids:
        return text
    if "id" not in item:
        raise _InvalidLineError('no field "id", which lines before have')
    item_id = item["id"]
    if not isinstance(item_id, str):
        raise _InvalidLineError(f'"id" is {_kind(item_id)}, not a string')
    return item_id, text


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value!r:.20}"
        case list():
            return "an array"
        case str():
            return "a string"
    return "an object"


def _without_byte_order_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Removes the byte order mark that some programs write before UTF-8."""
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix(codecs.BOM_UTF8)


def _strip_line_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")

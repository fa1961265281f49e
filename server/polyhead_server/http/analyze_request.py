"""Reads the requests of ``/v1/analyze``: texts and options of a JSON document, and the options of a stream of lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyhead_server.errors import InvalidRequestError
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import ALL_TASKS, MAX_ITEM_ID_BYTES, InvalidItem, Item, RequestOptions, Task
from polyhead_server.serving.backend import Backend
from polyhead_server.serving.option_names import ENCODINGS, TRUNCATION
from polyhead_server.serving.texts import item_from_string

from .calls import Call, boolean, integer, require_fields, string
from .openai import kind

_FIELDS = (
    "model",
    "text",
    "texts",
    "items",
    "tasks",
    "truncation",
    "prompt",
    "embedding",
    "timings",
    "novelty",
    "prediction_sets",
    "expected_fingerprints",
)
_DEFAULTS = RequestOptions()
_OPTIONS = (
    *("model", "tasks", "truncation", "prompt", "encoding", "dimensions"),
    *("timings", "novelty", "prediction_sets"),
)
_TASKS = {task.name.lower(): task for task in Task}


def read_items(document: Mapping[str, Any], backend: Backend) -> tuple[Item | InvalidItem, ...]:
    """Returns the texts of a document; an element that is not a text becomes an invalid item."""
    given = [name for name in ("text", "texts", "items") if document.get(name) is not None]
    if len(given) != 1:
        raise InvalidRequestError("INVALID_PARAMETER", "send one of text, texts and items")
    value = document[given[0]]
    entries = [value] if given[0] == "text" else value
    if not isinstance(entries, list):
        raise InvalidRequestError("INVALID_PARAMETER", f"{given[0]} must be a list")
    if not entries:
        raise InvalidRequestError("EMPTY_REQUEST", f"{given[0]} is an empty list; send at least one text")
    if len(entries) > backend.max_items:
        problem = f"the request has {len(entries)} texts; at most {backend.max_items} are allowed"
        raise InvalidRequestError("TOO_MANY_ITEMS", problem)
    limit = backend.max_characters()
    if given[0] == "items":
        return tuple(read_item(entry, limit) for entry in entries)
    return tuple(_text(str(index), entry, limit) for index, entry in enumerate(entries))


def read_item(entry: Any, limit: int) -> Item | InvalidItem:
    """Returns the text of an object with an id; an invalid item for anything else."""
    if not isinstance(entry, dict):
        return invalid_item("", f'the item is {kind(entry)}, not an object {{"id": ..., "text": ...}}')
    item_id = entry.get("id", "")
    if isinstance(item_id, int) and not isinstance(item_id, bool):
        item_id = str(item_id)
    if not isinstance(item_id, str):
        return invalid_item("", f"id is {kind(item_id)}, not a text")
    try:
        size = len(item_id.encode())
    except UnicodeEncodeError:
        return invalid_item("", "id contains an unpaired surrogate")
    if size > MAX_ITEM_ID_BYTES:
        return invalid_item(item_id[:64], f"id has more than {MAX_ITEM_ID_BYTES} bytes")
    return _text(item_id, entry.get("text"), limit)


def _text(item_id: str, text: Any, limit: int) -> Item | InvalidItem:
    if not isinstance(text, str):
        return invalid_item(item_id, f"text is {kind(text)}, not a text")
    return item_from_string(item_id, text, limit)


def invalid_item(item_id: str, problem: str) -> InvalidItem:
    """Returns an item that is answered with an error."""
    return InvalidItem(item_id, InvalidRequestError("INVALID_ITEM", problem))


def document_options(document: Mapping[str, Any], model: Model) -> RequestOptions:
    """Returns the options of a document.

    Raises:
        InvalidRequestError: A field is unknown or has an invalid value.
    """
    require_fields(document, _FIELDS)
    # The texts alone, as in most requests.
    if len(document) == 1:
        return _DEFAULTS
    return _options(document, _embedding_options(document), model)


def _embedding_options(document: Mapping[str, Any]) -> Mapping[str, Any]:
    embedding = document.get("embedding")
    if embedding is None:
        return {}
    if not isinstance(embedding, dict):
        raise InvalidRequestError("INVALID_PARAMETER", "embedding must be an object")
    require_fields(embedding, ("encoding", "dimensions"))
    return embedding


def _options(document: Mapping[str, Any], embedding: Mapping[str, Any], model: Model) -> RequestOptions:
    tasks = document.get("tasks")
    if tasks is not None and not (isinstance(tasks, list) and all(isinstance(task, str) for task in tasks)):
        raise InvalidRequestError("INVALID_PARAMETER", "tasks must be a list of texts")
    space, heads = _fingerprints(document.get("expected_fingerprints"))
    named = frozenset(_choice("tasks", task, _TASKS) for task in tasks or ())
    return RequestOptions(
        tasks=named or ALL_TASKS,
        required_tasks=named,
        encoding=_choice("encoding", embedding.get("encoding") or "float32", ENCODINGS),
        dimensions=integer(embedding, "dimensions", model.source.manifest.embedding.dimensions),
        truncation=_choice("truncation", document.get("truncation") or "truncate", TRUNCATION),
        prompt=string(document, "prompt"),
        timings=boolean(document, "timings", default=False),
        novelty=boolean(document, "novelty", default=False),
        prediction_sets=boolean(document, "prediction_sets", default=False),
        expected_space=space,
        expected_heads=heads,
    )


def _fingerprints(expected: Any) -> tuple[str, tuple[tuple[str, str], ...]]:
    if expected is None:
        return "", ()
    if isinstance(expected, dict):
        require_fields(expected, ("embedding_space", "heads"))
        space, heads = expected.get("embedding_space", ""), expected.get("heads", {})
        if isinstance(space, str) and isinstance(heads, dict) and all(isinstance(one, str) for one in heads.values()):
            return space, tuple(heads.items())
    problem = 'expected_fingerprints must be {"embedding_space": "...", "heads": {"NAME": "..."}}'
    raise InvalidRequestError("INVALID_PARAMETER", problem)


def query_options(call: Call) -> RequestOptions:
    """Returns the options of a stream of lines, which stand in the query."""
    query = call.exchange.query
    require_fields(query, _OPTIONS)
    document: dict[str, Any] = {"truncation": query.get("truncation"), "prompt": query.get("prompt")}
    if "tasks" in query:
        document["tasks"] = query["tasks"].split(",")
    for name in ("timings", "novelty", "prediction_sets"):
        if name in query:
            document[name] = {"true": True, "false": False}.get(query[name], query[name])
    embedding: dict[str, Any] = {"encoding": query.get("encoding")}
    if "dimensions" in query:
        text = query["dimensions"]
        embedding["dimensions"] = int(text) if text.isdecimal() and len(text) < 10 else text
    return _options(document, embedding, call.backend.model())


def _choice(name: str, value: Any, choices: Mapping[str, Any]) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise InvalidRequestError("INVALID_PARAMETER", f"{name} must be one of {', '.join(choices)}")
    return choices[value]

"""``POST /v1/analyze``: embedding, class and sentiment of texts from one pass, as JSON or as a stream of JSON lines."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from polyhead_server.errors import InvalidRequestError, ServerError
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import (
    ALL_TASKS,
    Encoding,
    InvalidItem,
    Item,
    ItemOutcome,
    Message,
    RequestOptions,
    Result,
    Task,
    Timings,
    Truncation,
)
from polyhead_server.serving.backend import Backend, Submission, Submitter, deadline_after
from polyhead_server.serving.embeddings import encodable, encode_embedding, shorten
from polyhead_server.serving.texts import item_from_string

from .calls import Call, boolean, integer, loads, require_fields, respond
from .errors import error_fields
from .openai import kind

NDJSON = "application/x-ndjson"
_MAX_ID_BYTES = 256
_FIELDS = ("text", "texts", "items", "tasks", "truncation", "embedding", "timings", "expected_fingerprints")
_OPTIONS = ("tasks", "truncation", "encoding", "dimensions", "timings")
_TASKS = {task.name.lower(): task for task in Task}
_TRUNCATION = {policy.name.lower(): policy for policy in Truncation}
_ENCODINGS = {
    "float32": Encoding.FLOAT32_LE,
    "float16": Encoding.FLOAT16_LE,
    "int8": Encoding.INT8,
    "binary": Encoding.BINARY,
}
# A stream submits the lines that have arrived together, at most this many at a time.
_MAX_LINES = 64


async def analyze(call: Call) -> Response:
    """Answers a JSON document, or a body of JSON lines with a stream of JSON lines."""
    if call.headers.get("content-type", "").partition(";")[0].strip().lower() in {NDJSON, "application/jsonl"}:
        return LineStream(call, _query_options(call))
    document = await call.json()
    require_fields(document, _FIELDS)
    options = _options(document, _embedding_options(document), call.backend.model())
    items = _items(document, call.backend)
    call.texts = len(items)
    model, outcomes = await call.backend.answer(Message(items, options), deadline_after(call.timeout_s()))
    pairs = zip(items, outcomes, strict=True)
    return respond(
        {
            "model": model.source.model_id,
            "fingerprints": {
                "embedding_space": model.fingerprints.embedding_space,
                "heads": dict(model.fingerprints.heads),
            },
            "answers": [record(model, item.item_id, outcome, options) for item, outcome in pairs],
        }
    )


async def info(call: Call) -> Response:
    """``GET /v1/info``: the model, its heads, its limits, and how it runs."""
    backend = call.backend
    model, settings = backend.model(), backend.settings
    manifest, runtime = model.source.manifest, model.engine.runtime
    return respond(
        {
            "name": backend.served_name(),
            "model_id": model.source.model_id,
            "heads": [
                {
                    "name": head.name,
                    "kind": head.kind,
                    "labels": head.labels,
                    "temperature": head.temperature,
                    "threshold": head.threshold,
                    "fingerprint": model.fingerprints.heads[head.name],
                }
                for head in manifest.heads
            ],
            "embedding": {
                "dimensions": manifest.embedding.dimensions,
                "pooling": manifest.embedding.pooling,
                "normalized": manifest.embedding.normalized,
                "fingerprint": model.fingerprints.embedding_space,
            },
            "limits": {
                "max_tokens": manifest.max_tokens,
                "max_characters": _max_characters(backend),
                "max_items_per_message": backend.max_items,
                "max_message_bytes": settings.max_message_bytes,
                "max_windows": settings.max_windows,
            },
            "runtime": {"engine": runtime.engine, "device": runtime.device, "variant": runtime.variant},
            "server_version": metadata.version("polyhead"),
        }
    )


def record(model: Model, item_id: str, outcome: ItemOutcome, options: RequestOptions) -> dict[str, Any]:
    """Returns an answer as the ``polyhead`` command prints it."""
    if Task.EMBEDDING in options.tasks:
        outcome = encodable(outcome, options.encoding)
    if isinstance(outcome, ServerError):
        return {"id": item_id, "error": error_fields(outcome)}
    fields: dict[str, Any] = {"id": item_id}
    manifest = model.source.manifest
    if Task.EMBEDDING in options.tasks:
        values = shorten(outcome.output.embedding, options.dimensions, normalized=manifest.embedding.normalized)
        fields["embedding"] = values if options.encoding is Encoding.FLOAT32_LE else _encoded(values, options.encoding)
    softmax, sigmoid = _heads(model, outcome)
    if Task.CLASSIFICATION in options.tasks:
        _add(fields, "classification", softmax)
    if Task.SENTIMENT in options.tasks:
        _add(fields, "sentiment", sigmoid)
    tokens = outcome.tokens
    fields["truncation"] = {
        "truncated": tokens.cut_at is not None,
        "tokens_seen": tokens.seen,
        "tokens_used": tokens.used,
        "cut_at_code_point": tokens.cut_at,
        "windows": len(tokens.windows),
    }
    if options.timings:
        fields["timings"] = _timings(outcome.timings)
    return fields


def _encoded(values: Any, encoding: Encoding) -> dict[str, Any]:
    data, scale = encode_embedding(values, encoding)
    names = {member: name for name, member in _ENCODINGS.items()}
    fields = {"encoding": names[encoding], "dimensions": len(values), "values": base64.b64encode(data).decode()}
    return fields | ({"scale": scale} if encoding is Encoding.INT8 else {})


def _heads(model: Model, result: Result) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    softmax: list[dict[str, Any]] = []
    sigmoid: list[dict[str, Any]] = []
    for head, values in zip(model.source.manifest.heads, result.output.probabilities, strict=True):
        if head.kind == "softmax":
            order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
            scores = [{"label": head.labels[index], "probability": values[index]} for index in order]
            softmax.append({"head": head.name, "scores": scores})
        elif head.threshold is not None:
            label = head.labels[bool(values[0] >= head.threshold)]
            sigmoid.append({"head": head.name, "probability": values[0], "label": label})
    return softmax, sigmoid


def _add(fields: dict[str, Any], name: str, answers: Sequence[dict[str, Any]]) -> None:
    """Adds the answer of the first head, and those of the others as a list."""
    if answers:
        fields[name] = answers[0]
    if len(answers) > 1:
        fields[f"additional_{name}s"] = answers[1:]


def _timings(timings: Timings) -> dict[str, Any]:
    stages = ("admission", "tokenization", "queue", "compute", "total")
    seconds = {f"{stage}_s": getattr(timings, f"{stage}_ns") / 1e9 for stage in stages}
    delivery_s = (time.monotonic_ns() - timings.finished_ns) / 1e9
    return {
        **seconds,
        "delivery_s": delivery_s,
        "batch_items": timings.batch_items,
        "batch_tokens": timings.batch_tokens,
    }


def _items(document: Mapping[str, Any], backend: Backend) -> tuple[Item | InvalidItem, ...]:
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
    limit = _max_characters(backend)
    if given[0] == "items":
        return tuple(_item(entry, limit) for entry in entries)
    return tuple(_text(str(index), entry, limit) for index, entry in enumerate(entries))


def _item(entry: Any, limit: int) -> Item | InvalidItem:
    if not isinstance(entry, dict):
        return _invalid_item("", f'the item is {kind(entry)}, not an object {{"id": ..., "text": ...}}')
    item_id = entry.get("id", "")
    if isinstance(item_id, int) and not isinstance(item_id, bool):
        item_id = str(item_id)
    if not isinstance(item_id, str):
        return _invalid_item("", f"id is {kind(item_id)}, not a text")
    try:
        size = len(item_id.encode())
    except UnicodeEncodeError:
        return _invalid_item("", "id contains an unpaired surrogate")
    if size > _MAX_ID_BYTES:
        return _invalid_item(item_id[:64], f"id has more than {_MAX_ID_BYTES} bytes")
    return _text(item_id, entry.get("text"), limit)


def _text(item_id: str, text: Any, limit: int) -> Item | InvalidItem:
    if not isinstance(text, str):
        return _invalid_item(item_id, f"text is {kind(text)}, not a text")
    return item_from_string(item_id, text, limit)


def _invalid_item(item_id: str, problem: str) -> InvalidItem:
    return InvalidItem(item_id, InvalidRequestError("INVALID_ITEM", problem))


def _max_characters(backend: Backend) -> int:
    return backend.model().source.manifest.max_tokens * backend.settings.max_characters_per_token


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
        encoding=_choice("encoding", embedding.get("encoding") or "float32", _ENCODINGS),
        dimensions=integer(embedding, "dimensions", model.source.manifest.embedding.dimensions),
        truncation=_choice("truncation", document.get("truncation") or "truncate", _TRUNCATION),
        timings=boolean(document, "timings", default=False),
        expected_space=space,
        expected_heads=heads,
    )


def _fingerprints(expected: Any) -> tuple[str, tuple[tuple[str, str], ...]]:
    if expected is None:
        return "", ()
    if isinstance(expected, dict):
        space, heads = expected.get("embedding_space", ""), expected.get("heads", {})
        if isinstance(space, str) and isinstance(heads, dict) and all(isinstance(one, str) for one in heads.values()):
            return space, tuple(heads.items())
    problem = 'expected_fingerprints must be {"embedding_space": "...", "heads": {"NAME": "..."}}'
    raise InvalidRequestError("INVALID_PARAMETER", problem)


def _query_options(call: Call) -> RequestOptions:
    """Returns the options of a stream of lines, which stand in the query."""
    query = dict(call.request.query_params)
    require_fields(query, _OPTIONS)
    document: dict[str, Any] = {"truncation": query.get("truncation")}
    if "tasks" in query:
        document["tasks"] = query["tasks"].split(",")
    if "timings" in query:
        document["timings"] = {"true": True, "false": False}.get(query["timings"], query["timings"])
    embedding: dict[str, Any] = {"encoding": query.get("encoding")}
    if "dimensions" in query:
        text = query["dimensions"]
        embedding["dimensions"] = int(text) if text.isdecimal() and len(text) < 10 else text
    return _options(document, embedding, call.backend.model())


def _choice(name: str, value: Any, choices: Mapping[str, Any]) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise InvalidRequestError("INVALID_PARAMETER", f"{name} must be one of {', '.join(choices)}")
    return choices[value]


class _Pending(NamedTuple):
    """The lines of one submission: their ids, the model, and their futures."""

    ids: list[str]
    submission: Submission


class LineStream(Response):
    """A response that answers each line of the request's body by one line, in order, while the body still comes."""

    media_type = NDJSON

    def __init__(self, call: Call, options: RequestOptions) -> None:
        """Prepares the stream.

        Args:
            call: The call.
            options: What to answer for each line.

        Raises:
            InvalidRequestError: The header with the deadline is invalid.
        """
        super().__init__(status_code=200)
        # The length is not known in advance.
        del self.headers["content-length"]
        self._call = call
        self._options = options
        self._deadline = deadline_after(call.timeout_s())
        self._pending: deque[_Pending] = deque()
        self._changed = asyncio.Event()
        self._space = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Runs the stream.

        Raises:
            ServerError: The stream is refused; nothing has been sent.
        """
        service = self._call.backend.service
        async with service.session(self._read, self._deadline, self._changed.set, has_age=False) as reader:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                while await self._wait(reader):
                    await send({"type": "http.response.body", "body": await self._next_lines(), "more_body": True})
            finally:
                for pending in self._pending:
                    pending.submission.cancel()
            error = self._reader_error(reader)
            last = orjson.dumps({"error": error_fields(error)}) + b"\n" if error else b""
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _read(self, submitter: Submitter) -> None:
        backend = self._call.backend
        limit = _max_characters(backend)
        number = 0
        async for lines in _line_groups(self._call):
            for begin in range(0, len(lines), _MAX_LINES):
                items: list[Item | InvalidItem] = []
                for line in lines[begin : begin + _MAX_LINES]:
                    number += 1
                    if line.strip():
                        items.append(_line_item(line, number, limit))
                if not items:
                    continue
                while sum(len(pending.ids) for pending in self._pending) >= backend.settings.stream_window:
                    self._space.clear()
                    await self._space.wait()
                submission = await backend.submit(submitter, Message(tuple(items), self._options), None)
                self._call.texts += len(items)
                self._pending.append(_Pending([item.item_id for item in items], submission))
                self._changed.set()

    async def _wait(self, reader: asyncio.Task[None]) -> bool:
        while not self._pending:
            if reader.done():
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def _reader_error(self, reader: asyncio.Task[None]) -> ServerError | None:
        if reader.cancelled():
            return self._call.backend.service.end_reason()
        error = reader.exception()
        if error is None or isinstance(error, ServerError):
            return error
        raise error

    async def _next_lines(self) -> bytes:
        ids, submission = self._pending[0]
        outcomes = [await future for future in submission.futures]
        self._pending.popleft()
        self._space.set()
        self._call.backend.service.metrics.count_outcomes(outcomes)
        model = submission.model
        return b"".join(
            orjson.dumps(record(model, item_id, outcome, self._options), option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
            for item_id, outcome in zip(ids, outcomes, strict=True)
        )


def _line_item(line: bytes, number: int, limit: int) -> Item | InvalidItem:
    try:
        entry = loads(line)
    except ValueError as error:
        return _invalid_item("", f"line {number} is not valid JSON: {error}")
    if isinstance(entry, str):
        return item_from_string(str(number - 1), entry, limit)
    if isinstance(entry, dict) and "id" not in entry:
        entry["id"] = str(number - 1)
    return _item(entry, limit)


async def _line_groups(call: Call) -> AsyncIterator[list[bytes]]:
    """Yields the complete lines of each part of a body.

    Raises:
        InvalidRequestError: A line is too long.
        OverloadedError: The incomplete lines and bodies of all calls are too large together.
    """
    limit = call.backend.settings.max_message_bytes
    rest: list[bytes] = []
    size = 0
    async for part in call.parts():
        *lines, last = part.split(b"\n")
        if lines:
            lines[0] = b"".join([*rest, lines[0]])
            rest, size = [], 0
            call.release()
            yield lines
        rest.append(last)
        size += len(last)
        if size > limit:
            raise InvalidRequestError("MESSAGE_TOO_LARGE", f"a line has more than {limit} bytes")
        call.keep(len(last))
    if size:
        yield [b"".join(rest)]

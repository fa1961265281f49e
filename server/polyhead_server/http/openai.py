"""OpenAI's ``/v1/embeddings`` and ``/v1/models``."""

from __future__ import annotations

import base64
from typing import Any

from polyhead_server.errors import InvalidRequestError, ServerError
from polyhead_server.inference.types import Encoding, Message, RequestOptions, Result, Task, Truncation
from polyhead_server.serving.backend import Backend, deadline_after, first_error
from polyhead_server.serving.embeddings import encode_embedding, shorten
from polyhead_server.serving.option_names import TRUNCATION
from polyhead_server.serving.texts import item_from_string

from .calls import Call, integer, require_fields, respond, string
from .exchange import Response

# OpenAI's own limit, which its clients rely on.
MAX_INPUTS = 2048
_FIELDS = ("input", "model", "encoding_format", "dimensions", "user", "truncation", "prompt_name")
_FOREIGN_IDS = (
    "input contains token ids, which belong to another tokenizer; send texts "
    "(langchain-openai: OpenAIEmbeddings(check_embedding_ctx_length=False))"
)
_EMBEDDING = frozenset({Task.EMBEDDING})
TRUNCATED_HEADER = "x-polyhead-truncated"


def field_error(field: str, problem: str, reason: str = "INVALID_PARAMETER") -> InvalidRequestError:
    """Returns the error of an invalid field, whose name the clients read."""
    error = InvalidRequestError(reason, problem)
    error.metadata = {"field": field}
    return error


async def embeddings(call: Call) -> Response:
    """``POST /v1/embeddings``."""
    document = await call.json()
    require_fields(document, _FIELDS)
    # Null means that the field is missing, as in OpenAI's API: some gateways send every field.
    name, encoding = (document.get(field) for field in ("model", "encoding_format"))
    if name is not None and not isinstance(name, str):
        raise field_error("model", "model must be a string")
    # Without a name, as many tools allow, the first model answers.
    backend = call.select(name)
    if encoding is None:
        encoding = "float"
    if encoding not in ("float", "base64"):  # a set could not hold a list
        raise field_error("encoding_format", "encoding_format must be float or base64")
    info = backend.model().source.manifest.embedding
    options = RequestOptions(
        _EMBEDDING,
        dimensions=integer(document, "dimensions", info.dimensions),
        truncation=_truncation(document.get("truncation")),
        prompt=string(document, "prompt_name"),
    )
    texts = _texts(document.get("input"))
    call.texts = len(texts)
    limit = backend.max_characters()
    items = tuple(item_from_string("", text, limit) for text in texts)
    _, outcomes = await backend.service.answer(Message(items, options), deadline_after(call.timeout_s()))
    if failure := first_error(outcomes):
        raise _of_input(*failure, alone=len(outcomes) == 1)
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    data = []
    for index, result in enumerate(results):
        values: Any = shorten(result.output.embedding, options.dimensions, normalized=info.normalized)
        if encoding == "base64":
            values = base64.b64encode(encode_embedding(values, Encoding.FLOAT32_LE)[0]).decode()
        data.append({"object": "embedding", "index": index, "embedding": values})
    tokens = sum(result.tokens.used for result in results)
    content = {
        "object": "list",
        "data": data,
        "model": backend.served_name(),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return respond(content, headers=truncated_header(results))


async def models(call: Call) -> Response:
    """``GET /v1/models``."""
    return respond({"object": "list", "data": [_model(backend) for backend in call.models]})


async def model(call: Call) -> Response:
    """``GET /v1/models/{model}``."""
    return respond(_model(call.select(call.exchange.path_params["model"])))


def _model(backend: Backend) -> dict[str, Any]:
    model_id = backend.model().source.model_id
    return {"id": backend.served_name(), "object": "model", "created": 0, "owned_by": "polyhead", "root": model_id}


def _texts(given: Any) -> list[str]:
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        raise field_error("input", "input must be a text or a list of texts")
    if not given:
        raise field_error("input", "input is an empty list; send at least one text", "EMPTY_REQUEST")
    if len(given) > MAX_INPUTS:
        raise field_error("input", f"input has {len(given)} texts; at most {MAX_INPUTS} are allowed", "TOO_MANY_ITEMS")
    for index, text in enumerate(given):
        if isinstance(text, str):
            continue
        if isinstance(text, int | list):
            raise field_error("input", _FOREIGN_IDS)
        raise field_error("input", f"input {index} is {kind(text)}, not a text")
    return given


def _truncation(value: Any) -> Truncation:
    if value is None:
        return Truncation.TRUNCATE
    if not isinstance(value, str) or value not in TRUNCATION:
        raise field_error("truncation", f"truncation must be one of {', '.join(TRUNCATION)}")
    return TRUNCATION[value]


def _of_input(index: int, error: ServerError, *, alone: bool) -> ServerError:
    if not isinstance(error, InvalidRequestError):
        return error
    return field_error("input", str(error) if alone else f"input {index}: {error}", error.reason)


def truncated_header(results: list[Result]) -> dict[str, str]:
    """Returns the header that counts the texts of which the model did not read the whole; none if it is 0."""
    count = sum(result.tokens.cut_at is not None for result in results)
    return {TRUNCATED_HEADER: str(count)} if count else {}


def kind(value: Any) -> str:
    """Returns what a JSON value is, in JSON's words."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names.get(type(value), "a text")

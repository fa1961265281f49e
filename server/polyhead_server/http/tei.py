"""The HTTP API of text-embeddings-inference."""

from __future__ import annotations

import asyncio
import time
from importlib import metadata
from typing import Any

from polyhead_server.errors import ExpiredError, InvalidRequestError, NotReadyError, TextTooLongError
from polyhead_server.inference.types import Message, RequestOptions, Result, Task
from polyhead_server.serving import tei
from polyhead_server.serving.backend import deadline_after, first_error, of_text
from polyhead_server.serving.texts import item_from_string

from .calls import Call, boolean, integer, require_fields, respond, string
from .exchange import Response
from .openai import kind, truncated_header

# Fields of the hub's inference API. ``options`` concerns its queue and cache, and never the answer.
_HUB_FIELDS = ("parameters", "options")
_EMBED_FIELDS = ("inputs", "truncate", "normalize", "dimensions", "truncation_direction", "prompt_name", *_HUB_FIELDS)
_PREDICT_FIELDS = ("inputs", "truncate", "raw_scores", "truncation_direction", "head", *_HUB_FIELDS)


async def embed(call: Call) -> Response:
    """``POST /embed``: one embedding for each input."""
    return await _embed(call, await call.json())


async def predict(call: Call) -> Response:
    """``POST /predict``: the labels of one head with their probabilities, most probable first."""
    document = await call.json()
    # huggingface_hub sends parameters and takes the first element of a list of lists, whatever the path of its URL.
    return await _predict(call, document, nested="parameters" in document)


async def root(call: Call) -> Response:
    """``POST /``: classification for a body with ``parameters``, as huggingface_hub sends it; otherwise embedding."""
    document = await call.json()
    if "parameters" in document:
        return await _predict(call, document, nested=True)
    return await _embed(call, document)


async def tokenize(call: Call) -> Response:
    """``POST /tokenize``: the tokens of each input."""
    document = await call.json()
    require_fields(document, ("inputs", "add_special_tokens", "prompt_name"))
    special = boolean(document, "add_special_tokens", default=True)
    prompt = string(document, "prompt_name")
    texts = _texts(call, document.get("inputs"))
    limit = call.backend.max_characters()
    deadline = deadline_after(call.timeout_s())
    found: list[list[dict[str, Any]]] = []
    left = tei.MAX_TOKENS
    for text in texts:
        item = item_from_string("", text, limit)
        tokens = await tei.tokenize(call.backend, item, special=special, prompt=prompt, limit=left)
        if deadline is not None and time.monotonic() > deadline:
            raise ExpiredError
        left -= len(tokens)
        found.append([{"start": None, "stop": None} | token for token in tokens])
        await asyncio.sleep(0)
    return respond(found)


async def decode(call: Call) -> Response:
    """``POST /decode``: the text of each list of token ids."""
    document = await call.json()
    require_fields(document, ("ids", "skip_special_tokens"))
    skip = boolean(document, "skip_special_tokens", default=True)
    ids = document.get("ids")
    lists: list[Any] = ids if isinstance(ids, list) and ids and isinstance(ids[0], list) else [ids]
    if len(lists) > call.backend.max_items:
        raise InvalidRequestError(
            "TOO_MANY_ITEMS", f"ids has {len(lists)} lists; at most {call.backend.max_items} are allowed"
        )
    if sum(len(one) for one in lists if isinstance(one, list)) > tei.MAX_TOKENS:
        raise tei.invalid("ids", f"must have at most {tei.MAX_TOKENS} elements")
    for one in lists:
        if not isinstance(one, list) or not all(type(number) is int and 0 <= number < 2**32 for number in one):
            raise tei.invalid("ids", "must be a list of token ids, or a list of such lists")
    return respond([await tei.decode(call.backend, one, skip_special=skip) for one in lists])


async def info(call: Call) -> Response:
    """``GET /info``."""
    backend = call.backend
    model, settings = backend.model(), backend.settings
    manifest = model.source.manifest
    heads = [tei.head_of(model, head.name) for head in manifest.heads]
    model_type: dict[str, Any] = {"embedding": {"pooling": manifest.embedding.pooling}}
    return respond(
        {
            "model_id": backend.served_name(),
            "model_sha": model.source.model_id.rpartition("-")[2],
            "model_dtype": model.engine.runtime.variant,
            "model_type": model_type,
            "max_concurrent_requests": settings.max_queue_tokens,
            "max_input_length": manifest.max_tokens,
            "max_batch_tokens": model.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": backend.max_items,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": metadata.version("polyhead"),
            "sha": None,
            "docker_label": None,
            "heads": {one.head.name: {str(i): label for i, label in enumerate(one.labels)} for one in heads},
        }
    )


async def health(call: Call) -> Response:
    """``GET /health`` and ``/ping``: 200 while the server should receive calls.

    Raises:
        NotReadyError: It should not.
    """
    if not call.backend.ready:
        raise NotReadyError
    return Response()


async def _embed(call: Call, document: dict[str, Any]) -> Response:
    require_fields(document, _EMBED_FIELDS)
    model = call.backend.model()
    info = model.source.manifest.embedding
    normalize = boolean(document, "normalize", default=True)
    if _object(document, "parameters"):
        raise tei.invalid("parameters", "must be empty")
    options = RequestOptions(
        frozenset({Task.EMBEDDING}),
        dimensions=integer(document, "dimensions", info.dimensions),
        prompt=string(document, "prompt_name"),
    )
    results, headers = await _answer(call, document, _texts(call, document.get("inputs")), options)
    dimensions = options.dimensions
    rows = [tei.embedding(model, result, dimensions, normalize=normalize) for result in results]
    return respond(rows, headers=headers)


async def _predict(call: Call, document: dict[str, Any], *, nested: bool) -> Response:
    require_fields(document, _PREDICT_FIELDS)
    raw_scores = boolean(document, "raw_scores", default=False)
    wanted = document.get("head") or (call.header(b"head") or "")
    if not isinstance(wanted, str):
        raise tei.invalid("head", "must be the name of a head")
    model = call.backend.model()
    head = tei.head_of(model, wanted)
    tei.check_raw_scores(head, raw_scores=raw_scores)
    top_k = _top_k(document, head)
    texts, several = _predicted_texts(call, document.get("inputs"))
    results, headers = await _answer(call, document, texts, RequestOptions(frozenset({head.task})))
    predictions = [tei.predictions(head, result)[:top_k] for result in results]
    rows = [[{"score": score, "label": label} for label, score in labels] for labels in predictions]
    return respond(rows if several or nested else rows[0], headers=headers)


def _top_k(document: dict[str, Any], head: tei.Head) -> int | None:
    """Returns the number of labels to answer with, from the parameters as huggingface_hub sends them."""
    parameters = _object(document, "parameters")
    require_fields(parameters, ("top_k", "function_to_apply"))
    function = tei.FUNCTIONS[head.head.kind]
    if parameters.get("function_to_apply") not in (None, function):
        allowed = f"must be {function}" if function else "must be absent"
        why = "the score is the output itself" if function == "none" else "scores are calibrated probabilities"
        raise tei.invalid("function_to_apply", f"{allowed}: {why}")
    return integer(parameters, "top_k", 2**31 - 1) or None


async def _answer(
    call: Call, document: dict[str, Any], texts: list[str], options: RequestOptions
) -> tuple[list[Result], dict[str, str]]:
    if document.get("truncation_direction") not in (None, "right", "Right"):
        raise tei.invalid("truncation_direction", "must be right: the beginning of a text is read")
    require_fields(_object(document, "options"), ("wait_for_model", "use_cache"))
    started_ns = time.monotonic_ns()
    call.texts = len(texts)
    limit = call.backend.max_characters()
    items = tuple(item_from_string("", text, limit) for text in texts)
    options = tei.with_truncation(options, truncate=boolean(document, "truncate", default=True))
    _, outcomes = await call.backend.service.answer(Message(items, options), deadline_after(call.timeout_s()))
    if failure := first_error(outcomes):
        index, error = failure
        if isinstance(error, TextTooLongError):
            error = InvalidRequestError(error.reason, f"{error}; set truncate to true to cut it")
        raise error if len(outcomes) == 1 else of_text(index, error)
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    return results, _headers(call, texts, results, started_ns) | truncated_header(results)


def _headers(call: Call, texts: list[str], results: list[Result], started_ns: int) -> dict[str, str]:
    """Returns the headers of a response; times in milliseconds, the longest among its texts."""
    longest = {
        name: max(getattr(result.timings, f"{stage}_ns") for result in results) // 1_000_000
        for name, stage in (("tokenization", "tokenization"), ("queue", "queue"), ("inference", "compute"))
    }
    return {
        "x-compute-type": "gpu" if call.backend.model().engine.runtime.device == "cuda" else "cpu",
        "x-compute-characters": str(sum(map(len, texts))),
        "x-compute-tokens": str(sum(result.tokens.used for result in results)),
        "x-total-time": str((time.monotonic_ns() - started_ns) // 1_000_000),
        **{f"x-{name}-time": str(milliseconds) for name, milliseconds in longest.items()},
    }


def _texts(call: Call, given: Any) -> list[str]:
    """Returns the inputs of a request, one or several.

    Raises:
        InvalidRequestError: They are none, too many, or no texts.
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise tei.invalid("inputs", "must be a text or a list of texts")
    if not texts:
        raise InvalidRequestError("EMPTY_REQUEST", "inputs cannot be empty")
    _require_few(call, texts)
    for index, text in enumerate(texts):
        if isinstance(text, int | list):
            raise tei.invalid("inputs", "contains token ids, which this server does not read; send texts")
        if not isinstance(text, str):
            raise tei.invalid("inputs", f"{index} is {kind(text)}, not a text")
    return texts


def _predicted_texts(call: Call, given: Any) -> tuple[list[str], bool]:
    """Returns the texts to classify, and whether they came as a list.

    Raises:
        InvalidRequestError: They are none, too many, or no texts.
    """
    if isinstance(given, str):
        return [given], False
    if not isinstance(given, list) or not given:
        if given == []:
            raise InvalidRequestError("EMPTY_REQUEST", "inputs cannot be empty")
        raise tei.invalid("inputs", 'must be a text, or a list of lists of one text: [["a"], ["b"]]')
    _require_few(call, given)
    if all(isinstance(one, list) and len(one) == 1 and isinstance(one[0], str) for one in given):
        return [one[0] for one in given], True
    if all(isinstance(one, str) for one in given):
        if len(given) == 1:
            return given, False
        raise tei.invalid("inputs", 'is a flat list, which means one pair of texts; for a batch send [["a"], ["b"]]')
    raise tei.invalid("inputs", 'must be a text, or a list of lists of one text: [["a"], ["b"]]')


def _object(document: dict[str, Any], field: str) -> dict[str, Any]:
    """Returns an object of the request; an empty one for null and a missing field."""
    value = document.get(field)
    if value is not None and not isinstance(value, dict):
        raise tei.invalid(field, f"is {kind(value)}, not an object")
    return value or {}


def _require_few(call: Call, texts: list[Any]) -> None:
    if len(texts) > call.backend.max_items:
        problem = f"inputs has {len(texts)} elements; at most {call.backend.max_items} are allowed"
        raise InvalidRequestError("TOO_MANY_ITEMS", problem)

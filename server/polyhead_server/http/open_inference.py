"""The Open Inference Protocol over HTTP, with its binary tensor extension."""

from __future__ import annotations

from typing import Any

import orjson

from polyhead_server.errors import InvalidRequestError, NotReadyError
from polyhead_server.serving import open_inference_input
from polyhead_server.serving import open_inference_metadata as documents
from polyhead_server.serving.backend import deadline_after
from polyhead_server.serving.open_inference import VERSION, InferRequest, ModelView, view_of
from polyhead_server.serving.open_inference_tensors import OutputTensor

from .calls import Call, boolean, json_object, respond, string
from .exchange import Response

# Length of the JSON part of a body, after which the raw tensors follow.
_JSON_LENGTH = "inference-header-content-length"
# Digits of that length; Python reads no number of thousands of digits.
_MAX_DIGITS = 20
_FIELDS = {"id", "inputs", "outputs", "parameters"}
# KServe's client repeats them, although the path names the model.
_MODEL_FIELDS = {"model_name", "model_version"}


async def server_metadata(_: Call) -> Response:
    """``GET /v2``."""
    return respond(documents.server_metadata("binary_tensor_data"))


async def live(_: Call) -> Response:
    """``GET /v2/health/live``."""
    return respond({"live": True})


async def ready(call: Call) -> Response:
    """``GET /v2/health/ready``."""
    return respond({"ready": call.models.ready}, 200 if call.models.ready else 503)


async def model_ready(call: Call) -> Response:
    """``GET /v2/models/{model}/ready``."""
    try:
        _require_model(call)
    except NotReadyError:
        return respond({"name": call.exchange.path_params["model"], "ready": False}, 503)
    name = call.backend.served_name()
    return respond({"name": name, "ready": call.backend.ready}, 200 if call.backend.ready else 503)


async def model_metadata(call: Call) -> Response:
    """``GET /v2/models/{model}``."""
    return respond(documents.model_metadata(call.backend, _require_model(call)))


async def model_config(call: Call) -> Response:
    """``GET /v2/models/{model}/config``: as Triton describes a model."""
    return respond(documents.model_config(call.backend, _require_model(call)))


async def model_statistics(call: Call) -> Response:
    """``GET /v2/models/stats`` and ``/v2/models/{model}/stats``: counters of this process since its start."""
    if "model" not in call.exchange.path_params:
        return respond(documents.model_statistics(call.models))
    _require_model(call)
    return respond(documents.model_statistics([call.backend]))


async def repository_index(call: Call) -> Response:
    """``POST /v2/repository/index``: the served models, whatever the body asks for."""
    return respond(documents.repository_index(call.models))


async def infer(call: Call) -> Response:
    """``POST /v2/models/{model}/infer``."""
    _require_model(call)
    document, binary = _split(await call.body(), call.header(_JSON_LENGTH.encode()))
    _require_fields(call, document)
    outputs, request_id = _outputs(document), _id(document)
    view = call.backend.view(view_of)
    texts = _texts(document, binary, call.backend.max_items)
    call.texts = len(texts)
    names = [output["name"] for output in outputs]
    parameters = _object(document, "parameters")
    decoded = view.request(texts, names, parameters, request_id)
    deadline = deadline_after(call.timeout_s(), decoded.timeout_s)
    model, outcomes = await call.backend.service.answer(decoded.message, deadline)
    tensors = call.backend.view(view_of, model).respond(decoded, outcomes)
    return _response(call, request_id, tensors, _binary_outputs(decoded, outputs, parameters))


def _require_model(call: Call) -> ModelView:
    backend = call.select(call.exchange.path_params["model"])
    if call.exchange.path_params.get("version", VERSION) != VERSION:
        raise call.models.not_found()
    return backend.view(view_of)


def _split(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes]:
    """Splits a body into its JSON document and the raw tensors after it."""
    if length is None:
        return json_object(body), b""
    if not length.isdecimal() or len(length) > _MAX_DIGITS or int(length) > len(body):
        problem = f"header {_JSON_LENGTH} must be the length of the JSON part of the body, at most {len(body)}"
        raise InvalidRequestError("INVALID_TENSOR", problem)
    return json_object(body[: int(length)]), body[int(length) :]


def _require_fields(call: Call, document: dict[str, Any]) -> None:
    if document.get("model_name") is not None:
        _require_same_model(call, str(document["model_name"]))
    if document.get("model_version") not in (None, "", VERSION):
        raise call.models.not_found()
    for name in document:
        if name not in _FIELDS | _MODEL_FIELDS:
            problem = f"field {name[:64]!a} is not known; the fields are {', '.join(sorted(_FIELDS))}"
            raise InvalidRequestError("UNKNOWN_PARAMETER", problem)


def _require_same_model(call: Call, name: str) -> None:
    """Checks the name in a document, which must be that of the path's model, or its id."""
    if call.models.named(name) is not call.backend:
        path_name = call.exchange.path_params["model"]
        problem = (
            f"model_name is {name[:64]!a}, and the path names {path_name[:64]!a}; send one name, or that of the path"
        )
        raise InvalidRequestError("INVALID_PARAMETER", problem)


def _texts(document: dict[str, Any], binary: bytes, max_items: int) -> list[bytes]:
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise InvalidRequestError("INVALID_TENSOR", "inputs must be a list of one tensor, which holds the texts")
    tensor = inputs[0]
    open_inference_input.require_datatype(str(tensor.get("datatype", "")))
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise InvalidRequestError(
            "INVALID_TENSOR", "inputs[0].shape must be a list of integers; send [n,1] for n texts"
        )
    count = open_inference_input.element_count(shape, max_items)
    parameters = _object(tensor, "parameters")
    is_binary = parameters.get("binary_data_size") is not None
    if is_binary and tensor.get("data") is not None:
        raise InvalidRequestError("INVALID_TENSOR", "inputs[0] has both data and binary_data_size; use one of them")
    open_inference_input.check_parameters(parameters, len(binary) if is_binary else None)
    if not is_binary:
        return _json_texts(tensor.get("data"), count)
    return open_inference_input.split_bytes_tensor(binary, count)


def _json_texts(data: Any, count: int) -> list[bytes]:
    if not isinstance(data, list):
        raise InvalidRequestError("INVALID_TENSOR", "inputs[0].data must be a list of texts")
    flat = [one for row in data for one in (row if isinstance(row, list) else [row])]
    if len(flat) != count:
        problem = f"inputs[0].data has {len(flat)} elements, its shape has {count}"
        raise InvalidRequestError("INVALID_TENSOR", problem)
    for index, text in enumerate(flat):
        if not isinstance(text, str):
            raise InvalidRequestError("INVALID_TENSOR", f"inputs[0].data: element {index} is not a text")
    # A lone surrogate becomes invalid UTF-8, which is an error of this text alone.
    return [text.encode(errors="surrogatepass") for text in flat]


def _outputs(document: dict[str, Any]) -> list[dict[str, Any]]:
    outputs = document.get("outputs") or []
    if not isinstance(outputs, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in outputs
    ):
        raise InvalidRequestError("UNKNOWN_OUTPUT", "outputs must be a list of objects with a name")
    for output in outputs:
        for name in _object(output, "parameters"):
            if name != "binary_data":
                problem = f"parameter {name[:64]!a} of output {output['name'][:64]!a} is not supported"
                raise InvalidRequestError("UNKNOWN_PARAMETER", problem)
        boolean(_object(output, "parameters"), "binary_data", default=False)
    return outputs


def _id(document: dict[str, Any]) -> str:
    """Returns the id of a request, with which it is answered; empty without one."""
    given = document.get("id")
    found = str(given) if type(given) is int else string(document, "id")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("INVALID_PARAMETER", "id is not valid UTF-8") from None
    return found


def _object(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequestError("INVALID_PARAMETER", f"{name} must be an object")
    return value


def _binary_outputs(decoded: InferRequest, outputs: list[dict[str, Any]], parameters: dict[str, Any]) -> set[str]:
    """Returns the names of the outputs that are wanted in binary form."""
    every = parameters.get("binary_data_output") is True
    if not outputs:
        return set(decoded.outputs) if every else set()
    return {output["name"] for output in outputs if _object(output, "parameters").get("binary_data", every)}


def _response(call: Call, request_id: str, tensors: list[OutputTensor], binary: set[str]) -> Response:
    described: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for tensor in tensors:
        fields: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if tensor.name in binary:
            raw.append(tensor.raw())
            fields["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            fields["data"] = tensor.flat()
        described.append(fields)
    content: dict[str, Any] = {"model_name": call.backend.served_name(), "model_version": VERSION, "outputs": described}
    if request_id:
        content["id"] = request_id
    if not raw:
        return respond(content)
    head = orjson.dumps(content)
    headers = {"content-type": "application/octet-stream", _JSON_LENGTH: str(len(head))}
    return Response(b"".join([head, *raw]), headers=headers)

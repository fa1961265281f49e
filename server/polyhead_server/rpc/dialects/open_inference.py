"""``inference.GRPCInferenceService``: the Open Inference Protocol over gRPC, with Triton's extensions.

``serving/open_inference.py`` gives the tensors their meaning; this module only reads and writes the messages.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from grpc import aio

from polyhead_server.errors import InvalidRequestError, ModelNotFoundError, NotReadyError, ServerError
from polyhead_server.inference.types import ItemOutcome, Message
from polyhead_server.rpc.message_limits import check_fields
from polyhead_server.rpc.wire_format import delimited, tag
from polyhead_server.serving import open_inference_input
from polyhead_server.serving import open_inference_metadata as documents
from polyhead_server.serving.backend import Backend, Submission, Submitter, deadline_after
from polyhead_server.serving.models import Models
from polyhead_server.serving.open_inference import VERSION, InferRequest, ModelView, view_of

from .descriptors import TYPES
from .ordered_stream import OrderedStream

NAME = "inference.GRPCInferenceService"
_Context = aio.ServicerContext[Any, Any]
# Fields of ModelInferRequest that hold tensors, whose number of nested fields is bounded.
_INPUTS, _CONTENTS, _BYTES_CONTENTS = 5, 5, 8
_RAW_INPUT_CONTENTS = 7
_FINAL = "triton_final_response"
_ID = tag(TYPES["inference.ModelInferResponse"].DESCRIPTOR, "id", "bytes")
_RAW_OUTPUT_CONTENTS = tag(TYPES["inference.ModelInferResponse"].DESCRIPTOR, "raw_output_contents", "bytes")
_INFER_RESPONSE = tag(TYPES["inference.ModelStreamInferResponse"].DESCRIPTOR, "infer_response", "message")


class _Plan(NamedTuple):
    """A decoded request: its model, what it asks for, and what its response repeats."""

    backend: Backend
    decoded: InferRequest
    request_id: str
    model_name: str
    is_final: bool

    def without_texts(self) -> _Plan:
        message = Message((), self.decoded.message.options)
        return self._replace(decoded=dataclasses.replace(self.decoded, message=message))


class OpenInferenceService:
    """The RPCs of the protocol, by their names."""

    def __init__(self, models: Models) -> None:
        """Creates the service.

        Args:
            models: Answer the texts.
        """
        self._models = models
        self._max_items = max(backend.max_items for backend in models)

    def deserializer(self, method: str) -> Callable[[bytes], Any]:
        """Returns the deserializer of a method's requests; it may raise a ``ServerError``."""
        kind = TYPES[f"inference.{'ModelInfer' if method == 'ModelStreamInfer' else method}Request"]
        if method not in {"ModelInfer", "ModelStreamInfer"}:
            return kind.FromString  # type: ignore[no-any-return]

        def infer_request(data: bytes) -> Any:
            check_fields(data, (_INPUTS, _CONTENTS, _BYTES_CONTENTS), self._max_items, _RAW_INPUT_CONTENTS)
            return kind.FromString(data)

        return infer_request

    async def ServerLive(self, _: Any, __: _Context) -> Any:  # noqa: N802
        """Tells whether the process is alive, which an answer proves."""
        return TYPES["inference.ServerLiveResponse"](live=True)

    async def ServerReady(self, _: Any, __: _Context) -> Any:  # noqa: N802
        """Tells whether the server should receive calls."""
        return TYPES["inference.ServerReadyResponse"](ready=self._models.ready)

    async def ModelReady(self, request: Any, __: _Context) -> Any:  # noqa: N802
        """Tells whether the named model is served and ready."""
        try:
            backend, _ = self._require_model(request.name, request.version)
        except NotReadyError:
            return TYPES["inference.ModelReadyResponse"](ready=False)
        except ModelNotFoundError:
            if not self._models.default.settings.api_keys:
                raise
            # This method needs no key, and the names are not for callers without one.
            raise ModelNotFoundError from None
        return TYPES["inference.ModelReadyResponse"](ready=backend.ready)

    async def ServerMetadata(self, _: Any, __: _Context) -> Any:  # noqa: N802
        """Describes the server."""
        return TYPES["inference.ServerMetadataResponse"](**documents.server_metadata())

    async def ModelMetadata(self, request: Any, _: _Context) -> Any:  # noqa: N802
        """Describes the tensors of the model."""
        backend, view = self._require_model(request.name, request.version)
        return TYPES["inference.ModelMetadataResponse"](**documents.model_metadata(backend, view))

    async def ModelConfig(self, request: Any, _: _Context) -> Any:  # noqa: N802
        """Describes the model as Triton would."""
        backend, view = self._require_model(request.name, request.version)
        return TYPES["inference.ModelConfigResponse"](config=documents.model_config(backend, view))

    async def ModelStatistics(self, request: Any, _: _Context) -> Any:  # noqa: N802
        """Returns the counters of this process since its start, of one model or of all."""
        backends = [self._require_model(request.name, request.version)[0]] if request.name else self._models
        return TYPES["inference.ModelStatisticsResponse"](**documents.model_statistics(backends))

    async def RepositoryIndex(self, _: Any, __: _Context) -> Any:  # noqa: N802
        """Lists the served models."""
        return TYPES["inference.RepositoryIndexResponse"](models=documents.repository_index(self._models))

    async def ModelInfer(self, request: Any, context: _Context) -> Any:  # noqa: N802
        """Answers the texts of one request."""
        plan = self._decode(request)
        backend, decoded = plan.backend, plan.decoded
        deadline = deadline_after(context.time_remaining(), decoded.timeout_s)
        model, outcomes = await backend.service.answer(decoded.message, deadline)
        return _encode(plan, backend.view(view_of, model), outcomes)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: _Context) -> None:  # noqa: N802
        """Answers a stream of requests in order; the error of one does not end the stream.

        A client that sends the metadata ``triton_grpc_error: true`` gets the first error as the stream's status.
        """
        strict = ("triton_grpc_error", "true") in {
            (str(key), str(value).lower()) for key, value in context.invocation_metadata() or ()
        }
        response_type = TYPES["inference.ModelStreamInferResponse"]

        deadline = deadline_after(context.time_remaining())
        # Each request names its model; of each, a stream has one flow.
        submitters: dict[Backend, Submitter] = {}

        async def submit(_: Submitter, request: Any) -> tuple[_Plan, Submission]:
            plan = self._decode(request)
            backend, decoded = plan.backend, plan.decoded
            if (submitter := submitters.get(backend)) is None:
                submitter = submitters[backend] = backend.service.submitter(deadline)
            own_deadline = deadline_after(decoded.timeout_s)
            return plan.without_texts(), await backend.submit(submitter, decoded.message, own_deadline)

        def respond(plan: _Plan, submission: Submission, outcomes: list[ItemOutcome]) -> Any:
            view = plan.backend.view(view_of, submission.model)
            return delimited(_INFER_RESPONSE, _encode(plan, view, outcomes))

        def failed(request_id: str, error: ServerError) -> Any:
            if strict:
                raise error
            return response_type(error_message=str(error), infer_response={"id": request_id})

        stream = OrderedStream(self._models.default, submit, respond, failed, lambda request: str(request.id[:64]))
        await stream.run(requests, context)

    def _require_model(self, name: str, version: str) -> tuple[Backend, ModelView]:
        """Returns the named model and its tensors.

        Raises:
            ModelNotFoundError: There is no such model.
            NotReadyError: The model is still loading.
        """
        backend = self._models.named(name)
        if version not in {"", VERSION}:
            raise self._models.not_found()
        return backend, backend.view(view_of)

    def _decode(self, request: Any) -> _Plan:
        backend, view = self._require_model(request.model_name, request.model_version)
        texts = _texts(request, backend.max_items)
        for output in request.outputs:
            # KServe's client asks for binary outputs, which all are.
            if set(output.parameters) - {"binary_data"}:
                problem = f"output {output.name[:64]!a} has parameters; this server supports none for outputs"
                raise InvalidRequestError("UNKNOWN_PARAMETER", problem)
        parameters = {name: _value(value) for name, value in request.parameters.items()}
        decoded = view.request(texts, [output.name for output in request.outputs], parameters, request.id)
        is_final = "triton_enable_empty_final_response" in parameters
        return _Plan(backend, decoded, request.id, request.model_name, is_final)


def _encode(plan: _Plan, view: ModelView, outcomes: Sequence[ItemOutcome]) -> bytes:
    tensors = view.respond(plan.decoded, outcomes)
    outputs = tuple([(one.name, one.datatype, one.shape) for one in tensors])
    description = _description(plan.model_name, outputs, is_final=plan.is_final)
    # Always raw: the clients' ``as_numpy`` reads nothing else for numbers.
    contents = [delimited(_RAW_OUTPUT_CONTENTS, one.raw()) for one in tensors]
    return b"".join((description, delimited(_ID, plan.request_id.encode()), *contents))


@functools.lru_cache(maxsize=256)
def _description(model_name: str, outputs: tuple[tuple[str, str, tuple[int, int]], ...], *, is_final: bool) -> bytes:
    """Returns the fields of a response that are the same for all calls of a client."""
    response = TYPES["inference.ModelInferResponse"](
        model_name=model_name,
        model_version=VERSION,
        parameters={_FINAL: {"bool_param": True}} if is_final else {},
        outputs=[{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in outputs],
    )
    return response.SerializeToString()  # type: ignore[no-any-return]


def _texts(request: Any, max_items: int) -> list[bytes]:
    """Returns the elements of the request's input tensor, at most ``max_items``.

    Raises:
        InvalidRequestError: Names the field that is wrong.
    """
    if len(request.inputs) != 1:
        problem = f"the request has {len(request.inputs)} input tensors; send the texts in one"
        raise InvalidRequestError("INVALID_TENSOR", problem)
    (tensor,) = request.inputs
    open_inference_input.require_datatype(tensor.datatype)
    count = open_inference_input.element_count(tensor.shape, max_items)
    raw_bytes = len(request.raw_input_contents[0]) if request.raw_input_contents else None
    parameters = {name: _value(value) for name, value in tensor.parameters.items()}
    open_inference_input.check_parameters(parameters, raw_bytes)
    if len(request.raw_input_contents) > 1:
        problem = f"raw_input_contents has {len(request.raw_input_contents)} elements for one input tensor"
        raise InvalidRequestError("INVALID_TENSOR", problem)
    typed = tensor.contents.ListFields()
    if request.raw_input_contents:
        if typed:
            problem = "the content stands both in raw_input_contents and in contents; use one of them"
            raise InvalidRequestError("INVALID_TENSOR", problem)
        return open_inference_input.split_bytes_tensor(request.raw_input_contents[0], count)
    others = [field.name for field, _ in typed if field.name != "bytes_contents"]
    if others:
        problem = f"contents.{others[0]} is set for a tensor of datatype BYTES; use bytes_contents"
        raise InvalidRequestError("INVALID_TENSOR", problem)
    texts = list(tensor.contents.bytes_contents)
    if len(texts) != count:
        problem = f"the shape of the input tensor has {count} elements, bytes_contents has {len(texts)}"
        raise InvalidRequestError("INVALID_TENSOR", problem)
    return texts


def _value(parameter: Any) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, choice) if choice else None

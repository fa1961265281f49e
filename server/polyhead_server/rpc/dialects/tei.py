"""``tei.v1``: the gRPC protocol of text-embeddings-inference."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import metadata
from typing import Any, NamedTuple, cast

from grpc import aio

from polyhead_server.errors import InvalidRequestError, NotSupportedError, ServerError, TextTooLongError
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import ItemOutcome, Message, RequestOptions, Result, Task
from polyhead_server.rpc.wire_format import delimited, tag
from polyhead_server.serving import tei
from polyhead_server.serving.backend import Backend, Submission, Submitter, deadline_after
from polyhead_server.serving.texts import item_from_bytes

from .descriptors import TYPES
from .ordered_stream import OrderedStream

PACKAGE = "tei.v1"
_EMBEDDINGS = tag(TYPES["tei.v1.EmbedResponse"].DESCRIPTOR, "embeddings", "bytes")
# Metadata that selects the head of Predict, whose messages have no field for it.
_HEAD = "head"
_LEFT = 1
_Context = aio.ServicerContext[Any, Any]


class _Plan(NamedTuple):
    """A decoded request: its message, the head that it asks for or how it wants its embedding, and its arrival."""

    message: Message
    head: tei.Head | None
    normalize: bool
    characters: int
    arrived_ns: int


class TeiServices:
    """The RPCs of all services of the protocol, by the name of their service and their own."""

    def __init__(self, backend: Backend) -> None:
        """Creates the services.

        Args:
            backend: Answers the texts.
        """
        self._backend = backend
        self.methods: dict[tuple[str, str], Callable[..., Awaitable[Any]]] = {
            ("Info", "Info"): self._info,
            ("Embed", "Embed"): self._unary(self._plan_embed, self._embedding),
            ("Embed", "EmbedStream"): self._stream(self._plan_embed, self._embedding),
            ("Predict", "Predict"): self._unary(self._plan_predict, self._predictions),
            ("Predict", "PredictStream"): self._stream(self._plan_predict, self._predictions),
            ("Tokenize", "Tokenize"): self._tokenize,
            ("Tokenize", "TokenizeStream"): self._each(self._tokenize),
            ("Tokenize", "Decode"): self._decode,
            ("Tokenize", "DecodeStream"): self._each(self._decode),
        }

    def method(self, service: str, name: str) -> Callable[..., Awaitable[Any]]:
        """Returns the behavior of an RPC; one that the model cannot answer fails with UNIMPLEMENTED."""
        return self.methods.get((service, name)) or _not_supported(f"{PACKAGE}.{service}/{name}")

    async def _info(self, _: Any, __: _Context) -> Any:
        model, settings = self._backend.model(), self._backend.settings
        return TYPES["tei.v1.InfoResponse"](
            version=metadata.version("polyhead"),
            model_id=self._backend.served_name(),
            model_sha=model.source.model_id.rpartition("-")[2],
            model_dtype=model.engine.runtime.variant,
            # The field holds one value; Predict is answered all the same.
            model_type=0,
            max_concurrent_requests=settings.max_queue_tokens,
            max_input_length=model.source.manifest.max_tokens,
            max_batch_tokens=model.max_batch_tokens,
            max_client_batch_size=self._backend.max_items,
            tokenization_workers=1,
        )

    def _unary(self, plan_of: Callable[[Any, _Context], _Plan], respond: Callable[..., Any]) -> Any:
        async def unary(request: Any, context: _Context) -> Any:
            plan = plan_of(request, context)
            deadline = deadline_after(context.time_remaining())
            model, (outcome,) = await self._backend.service.answer(plan.message, deadline)
            result = _result(outcome)
            await context.send_initial_metadata(_headers(plan, result))
            return respond(plan, model, result)

        return unary

    def _stream(self, plan_of: Callable[[Any, _Context], _Plan], respond: Callable[..., Any]) -> Any:
        async def stream(requests: AsyncIterator[Any], context: _Context) -> None:
            async def submit(submitter: Submitter, request: Any) -> tuple[_Plan, Submission]:
                plan = plan_of(request, context)
                submission = await self._backend.submit(submitter, plan.message, None)
                return plan._replace(message=Message((), plan.message.options)), submission

            def response(plan: _Plan, submission: Submission, outcomes: list[ItemOutcome]) -> Any:
                return respond(plan, submission.model, _result(outcomes[0]))

            await OrderedStream(self._backend, submit, response, _end_stream).run(requests, context)

        return stream

    def _each(self, unary: Callable[[Any, _Context], Awaitable[Any]]) -> Callable[..., Awaitable[None]]:
        async def stream(requests: AsyncIterator[Any], context: _Context) -> None:
            queue: asyncio.Queue[Any] = asyncio.Queue()

            async def read(_: Submitter) -> None:
                async for request in requests:
                    queue.put_nowait(request)
                    # The next one is read after this one was answered.
                    await queue.join()

            async with self._backend.service.session(read, None, lambda: queue.put_nowait(None)) as reader:
                while (request := await queue.get()) is not None:
                    await context.write(await unary(request, context))
                    queue.task_done()
                if reader.cancelled():
                    raise self._backend.service.end_reason()
                await reader

        return stream

    def _plan_embed(self, request: Any, _: _Context) -> _Plan:
        normalize = request.normalize if request.HasField("normalize") else True
        dimensions = request.dimensions if request.HasField("dimensions") else 0
        options = RequestOptions(frozenset({Task.EMBEDDING}), dimensions=dimensions, prompt=request.prompt_name)
        return self._plan(request, options, normalize=normalize)

    def _plan_predict(self, request: Any, context: _Context) -> _Plan:
        wanted = next((str(value) for key, value in context.invocation_metadata() or () if key == _HEAD), "")
        head = tei.head_of(self._backend.model(), wanted)
        tei.check_raw_scores(head, raw_scores=request.raw_scores)
        return self._plan(request, RequestOptions(frozenset({head.task})), head=head)

    def _plan(
        self, request: Any, options: RequestOptions, *, head: tei.Head | None = None, normalize: bool = True
    ) -> _Plan:
        if request.truncation_direction == _LEFT:
            raise tei.invalid(
                "truncation_direction", "must be TRUNCATION_DIRECTION_RIGHT: the beginning of a text is read"
            )
        if not request.inputs:
            raise tei.invalid("inputs", "cannot be empty")
        item = item_from_bytes("", request.inputs, self._backend.service.max_text_bytes())
        message = Message((item,), tei.with_truncation(options, truncate=request.truncate))
        return _Plan(message, head, normalize, len(request.inputs), time.monotonic_ns())

    def _embedding(self, plan: _Plan, model: Model, result: Result) -> bytes:
        values = tei.embedding(model, result, plan.message.options.dimensions, normalize=plan.normalize)
        # Numbers in a packed field are the bytes of the array, which need no list of Python's numbers.
        embeddings = delimited(_EMBEDDINGS, values.astype("<f4", copy=False).tobytes())
        rest = TYPES["tei.v1.EmbedResponse"](metadata=_metadata(plan, result)).SerializeToString()
        return embeddings + rest  # type: ignore[no-any-return]

    def _predictions(self, plan: _Plan, _: Model, result: Result) -> Any:
        predictions = [
            {"label": label, "score": score} for label, score in tei.predictions(cast(tei.Head, plan.head), result)
        ]
        return TYPES["tei.v1.PredictResponse"](predictions=predictions, metadata=_metadata(plan, result))

    async def _tokenize(self, request: Any, _: _Context) -> Any:
        item = item_from_bytes("", request.inputs, self._backend.service.max_text_bytes())
        special, prompt = request.add_special_tokens, request.prompt_name
        tokens = await tei.tokenize(self._backend, item, special=special, prompt=prompt)
        return TYPES["tei.v1.EncodeResponse"](tokens=tokens)

    async def _decode(self, request: Any, _: _Context) -> Any:
        text = await tei.decode(self._backend, request.ids, skip_special=request.skip_special_tokens)
        return TYPES["tei.v1.DecodeResponse"](text=text)


def deserializer(name: str) -> Callable[[bytes], Any]:
    """Returns the deserializer of a request message, given its full name."""
    return TYPES[name.removeprefix(".")].FromString  # type: ignore[no-any-return]


def _result(outcome: ItemOutcome) -> Result:
    """Returns the result or raises the error, with the code that the clients of this protocol expect."""
    if isinstance(outcome, TextTooLongError):
        raise InvalidRequestError(outcome.reason, f"inputs: {outcome}; set truncate to true to cut it")
    if isinstance(outcome, ServerError):
        raise outcome
    return outcome


def _end_stream(_: Any, error: ServerError) -> Any:
    # The protocol has no error for one request: the first one ends the stream.
    raise error


def _not_supported(method: str) -> Callable[..., Awaitable[Any]]:
    async def refuse(_: Any, __: _Context) -> Any:
        raise NotSupportedError(f"{method} is not implemented: the model has one dense embedding and its heads")

    return refuse


def _metadata(plan: _Plan, result: Result) -> dict[str, int]:
    timings = result.timings
    return {
        "compute_chars": plan.characters,
        "compute_tokens": result.tokens.used,
        "total_time_ns": time.monotonic_ns() - plan.arrived_ns,
        "tokenization_time_ns": timings.tokenization_ns,
        "queue_time_ns": timings.queue_ns,
        "inference_time_ns": timings.compute_ns,
    }


def _headers(plan: _Plan, result: Result) -> list[tuple[str, str]]:
    """Returns the initial metadata of a unary response; times in milliseconds."""
    values = _metadata(plan, result)
    times = ((f"x-{name[: -len('_ns')].replace('_', '-')}", values[name]) for name in values if name.endswith("_ns"))
    return [
        ("x-compute-characters", str(values["compute_chars"])),
        ("x-compute-tokens", str(values["compute_tokens"])),
        *((name, str(nanoseconds // 1_000_000)) for name, nanoseconds in times),
    ]

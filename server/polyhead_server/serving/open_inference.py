"""The Open Inference Protocol's view of the model: texts in one BYTES tensor, answers in named tensors.

====================== ================ ==========================================================================
output                 datatype, shape  content
====================== ================ ==========================================================================
embedding              FP32 [n,d]       sentence embeddings; FP16, INT8 or UINT8 with the parameter ``encoding``
embedding_scale        FP32 [n,1]       factor of the integers; only with ``encoding`` = int8
HEAD_probabilities     FP32 [n,k]       calibrated probabilities in the order of the head's labels
HEAD_label             BYTES [n,1]      the label that the head decides for
truncated              BOOL [n,1]       whether the model did not read the whole text
error                  BYTES [n,1]      why a text has no answer, empty if it has one; only with ``partial``
====================== ================ ==========================================================================

The protocol has no place for the error of one text. By default the first one fails the call; with the parameter
``partial`` such a text gets NaN and an ``error``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from polyhead_server.errors import InvalidRequestError, ServerError
from polyhead_server.inference.types import (
    Encoding,
    ItemOutcome,
    Message,
    RequestOptions,
    Result,
    Task,
    Truncation,
)

from .backend import first_error, of_text
from .embeddings import encodable, encode_embedding, shorten
from .texts import item_from_bytes

TEXT_INPUT = "text"
VERSION = "1"
_TRUNCATION = {policy.name.lower(): policy for policy in Truncation}
_ENCODINGS = {
    "float32": Encoding.FLOAT32_LE,
    "float16": Encoding.FLOAT16_LE,
    "int8": Encoding.INT8,
    "binary": Encoding.BINARY,
}
# Datatype of the embedding, and the numpy type of its encoded bytes.
_EMBEDDING_TYPES = {
    Encoding.FLOAT32_LE: ("FP32", "<f4"),
    Encoding.FLOAT16_LE: ("FP16", "<f2"),
    Encoding.INT8: ("INT8", "i1"),
    Encoding.BINARY: ("UINT8", "u1"),
}
# Parameters that clients send by themselves and that change nothing here.
_IGNORED = frozenset({"priority", "triton_enable_empty_final_response", "request_type", "binary_data_output"})
_MAX_ID_BYTES = 256


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of a tensor; -1 stands for the number of texts."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output of one call.

    Attributes:
        values: (n, k) numbers or booleans; for BYTES the list of n texts.
    """

    name: str
    datatype: str
    shape: tuple[int, int]
    values: NDArray[Any] | list[str]

    def raw(self) -> bytes:
        """Returns the tensor in the protocol's binary layout: little-endian, in row-major order."""
        if isinstance(self.values, list):
            return b"".join(struct.pack("<I", len(text)) + text for text in map(str.encode, self.values))
        return self.values.tobytes()

    def flat(self) -> list[Any]:
        """Returns the elements in row-major order."""
        return self.values if isinstance(self.values, list) else self.values.ravel().tolist()


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A decoded request.

    Attributes:
        message: The texts and the options for them.
        outputs: Names of the outputs to return, in this order.
        partial: Whether a text may fail without failing the call.
        timeout_s: Seconds that the client gives the call; None for no limit besides the call's own deadline.
    """

    message: Message
    outputs: tuple[str, ...]
    partial: bool
    timeout_s: float | None


class ModelView:
    """The tensors of one model."""

    def __init__(self, manifest: bundle.Manifest, max_items: int, max_text_bytes: int) -> None:
        """Derives the tensors.

        Args:
            manifest: The bundle's.
            max_items: Maximum number of texts in a call.
            max_text_bytes: How many bytes of a text to decode.
        """
        self._manifest = manifest
        self._max_items = max_items
        self._max_text_bytes = max_text_bytes
        self._tasks = {"embedding": Task.EMBEDDING, "embedding_scale": Task.EMBEDDING}
        self._heads: dict[str, tuple[int, bundle.Head]] = {}
        for index, head in enumerate(manifest.heads):
            task = Task.CLASSIFICATION if head.kind == "softmax" else Task.SENTIMENT
            for name in (f"{head.name}_probabilities", f"{head.name}_label"):
                self._tasks[name] = task
                self._heads[name] = (index, head)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The labels of each head, in the order of its probabilities."""
        return {head.name: head.labels for head in self._manifest.heads}

    @property
    def inputs(self) -> list[TensorSpec]:
        """The inputs."""
        return [TensorSpec(TEXT_INPUT, "BYTES", (-1, 1))]

    @property
    def outputs(self) -> list[TensorSpec]:
        """The outputs of a call that requests none by name."""
        heads = self._manifest.heads
        return [
            TensorSpec("embedding", "FP32", (-1, self._manifest.embedding.dimensions)),
            *(TensorSpec(f"{head.name}_probabilities", "FP32", (-1, len(head.labels))) for head in heads),
            *(TensorSpec(f"{head.name}_label", "BYTES", (-1, 1)) for head in heads),
            TensorSpec("truncated", "BOOL", (-1, 1)),
        ]

    def request(
        self, texts: Sequence[bytes], outputs: Sequence[str], parameters: Mapping[str, Any], request_id: str = ""
    ) -> InferRequest:
        """Interprets a request.

        Args:
            texts: The elements of the input tensor.
            outputs: Names of the requested outputs; none for all.
            parameters: The request's parameters.
            request_id: Id that the response repeats.

        Raises:
            InvalidRequestError: Names what is wrong and how to correct it.
        """
        if len(request_id.encode(errors="surrogatepass")) > _MAX_ID_BYTES:
            raise InvalidRequestError("ITEM_ID_TOO_LONG", f"id has more than {_MAX_ID_BYTES} bytes")
        if not texts:
            raise InvalidRequestError("EMPTY_REQUEST", "the input tensor has no elements; send at least one text")
        if len(texts) > self._max_items:
            problem = f"the input tensor has {len(texts)} elements; at most {self._max_items} are allowed"
            raise InvalidRequestError("TOO_MANY_ITEMS", problem)
        settings = _Parameters(parameters)
        encoding = settings.choice("encoding", _ENCODINGS, Encoding.FLOAT32_LE)
        partial = settings.boolean("partial")
        wanted = self._wanted(outputs, encoding, partial=partial)
        options = RequestOptions(
            # A call for ``truncated`` alone still has to run the model once.
            tasks=frozenset(self._tasks[name] for name in wanted if name in self._tasks) or frozenset({Task.EMBEDDING}),
            encoding=encoding,
            dimensions=settings.integer("dimensions", self._manifest.embedding.dimensions),
            truncation=settings.choice("truncation", _TRUNCATION, Truncation.TRUNCATE),
        )
        timeout_us = settings.integer("timeout", 2**63 - 1)
        settings.require_known()
        items = tuple(item_from_bytes("", text, self._max_text_bytes) for text in texts)
        return InferRequest(Message(items, options), wanted, partial, timeout_us / 1e6 if timeout_us else None)

    def _wanted(self, outputs: Sequence[str], encoding: Encoding, *, partial: bool) -> tuple[str, ...]:
        names = [spec.name for spec in self.outputs]
        if encoding is Encoding.INT8:
            names.insert(1, "embedding_scale")
        if partial:
            names.append("error")
        for name in outputs:
            if name not in names:
                problem = f"the model has no output {_shown(name)}; its outputs are {', '.join(names)}"
                raise InvalidRequestError("UNKNOWN_OUTPUT", problem)
        if len(set(outputs)) < len(outputs):
            raise InvalidRequestError("UNKNOWN_OUTPUT", "an output is requested twice")
        return tuple(outputs) or tuple(names)

    def respond(self, request: InferRequest, outcomes: Sequence[ItemOutcome]) -> list[OutputTensor]:
        """Makes the requested output tensors of the outcomes.

        Raises:
            ServerError: The first error of a text, unless the request is ``partial``.
        """
        options = request.message.options
        outcomes = [encodable(outcome, options.encoding) for outcome in outcomes]
        if not request.partial and (failure := first_error(outcomes)):
            index, error = failure
            raise error if len(outcomes) == 1 else of_text(index, error)
        return [self._output(name, request, outcomes) for name in request.outputs]

    def _output(self, name: str, request: InferRequest, outcomes: Sequence[ItemOutcome]) -> OutputTensor:
        if name in {"embedding", "embedding_scale"}:
            return self._embedding(name, request, outcomes)
        if name == "truncated":
            cut = [isinstance(outcome, Result) and outcome.tokens.cut_at is not None for outcome in outcomes]
            return _column(name, "BOOL", np.asarray(cut, dtype=np.bool_))
        if name == "error":
            errors = [str(outcome) if isinstance(outcome, ServerError) else "" for outcome in outcomes]
            return OutputTensor(name, "BYTES", (len(errors), 1), errors)
        index, head = self._heads[name]
        rows = [probabilities(head, outcome, index) for outcome in outcomes]
        if name.endswith("_label"):
            labels = [decide(head, row) for row in rows]
            return OutputTensor(name, "BYTES", (len(labels), 1), labels)
        return OutputTensor(name, "FP32", (len(rows), len(head.labels)), np.stack(rows))

    def _embedding(self, name: str, request: InferRequest, outcomes: Sequence[ItemOutcome]) -> OutputTensor:
        options, info = request.message.options, self._manifest.embedding
        datatype, numpy_type = _EMBEDDING_TYPES[options.encoding]
        # Integers have no NaN; there the scale tells that the embedding is missing.
        missing = np.full(options.dimensions or info.dimensions, np.nan if datatype[0] == "F" else 0, np.float32)
        encoded: list[NDArray[Any]] = []
        scales: list[float] = []
        for outcome in outcomes:
            values, has_result = missing, isinstance(outcome, Result)
            if isinstance(outcome, Result):
                values = shorten(outcome.output.embedding, options.dimensions, normalized=info.normalized)
            data, scale = encode_embedding(values, options.encoding)
            encoded.append(np.frombuffer(data, numpy_type))
            scales.append(scale if has_result else np.nan)
        if name == "embedding_scale":
            return _column(name, "FP32", np.asarray(scales, dtype="<f4"))
        rows = np.stack(encoded)  # (n, bytes or numbers of an embedding)
        return OutputTensor(name, datatype, (len(rows), rows.shape[1]), rows)


def split_bytes_tensor(raw: bytes, count: int) -> list[bytes]:
    """Splits the raw content of a BYTES tensor into its elements, each preceded by its length.

    Args:
        raw: For each element its length as little-endian uint32, and its bytes.
        count: Number of elements according to the tensor's shape.

    Raises:
        InvalidRequestError: The lengths do not add up to the content, or there are more or fewer elements.
    """
    return list(_elements(raw, count))


def _elements(raw: bytes, count: int) -> Iterator[bytes]:
    at = 0
    for index in range(count):
        begin = at + 4
        if begin > len(raw):
            raise _mismatch(f"ends before element {index} of {count}")
        at = begin + int.from_bytes(raw[at:begin], "little")
        if at > len(raw):
            raise _mismatch(f"gives element {index} {at - begin} bytes, and {len(raw) - begin} are left")
        yield raw[begin:at]
    if at < len(raw):
        raise _mismatch(f"has {len(raw) - at} bytes after its {count} elements")


def _mismatch(problem: str) -> InvalidRequestError:
    hint = "each element of a BYTES tensor is its length as little-endian uint32 followed by its bytes"
    return InvalidRequestError("INVALID_TENSOR", f"the raw content of the input tensor {problem}; {hint}")


def element_count(shape: Sequence[int]) -> int:
    """Returns the number of texts of an input tensor of this shape.

    Raises:
        InvalidRequestError: The shape is neither [n] nor [n,1].
    """
    if (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)) and shape[0] >= 0:
        return shape[0]
    shown = f"{list(shape)}" if len(shape) <= 8 else f"of {len(shape)} dimensions"
    raise InvalidRequestError("INVALID_TENSOR", f"the input tensor has shape {shown}; send [n,1] or [n] for n texts")


def require_datatype(datatype: str) -> None:
    """Rejects an input that is not a tensor of texts.

    Raises:
        InvalidRequestError: ``INVALID_TENSOR``.
    """
    if datatype != "BYTES":
        problem = f"the input tensor has datatype {_shown(datatype)}; send the texts as datatype BYTES"
        raise InvalidRequestError("INVALID_TENSOR", problem)


def probabilities(head: bundle.Head, outcome: ItemOutcome, index: int) -> NDArray[np.float32]:
    """Returns the probabilities of a head's labels, in their order: (labels,) float32; NaN without a result."""
    if not isinstance(outcome, Result):
        return np.full(len(head.labels), np.nan, np.float32)
    values = outcome.output.probabilities[index]
    if head.kind == "softmax":
        return values
    return np.asarray([1 - values[0], values[0]], np.float32)


def decide(head: bundle.Head, values: NDArray[np.float32]) -> str:
    """Returns the label that a head decides for, given the probabilities of its labels; empty for NaN."""
    if np.isnan(values[0]):
        return ""
    if head.kind == "softmax":
        return head.labels[int(values.argmax())]
    return head.labels[bool(values[1] >= (head.threshold if head.threshold is not None else 0.5))]


class _Parameters:
    """A request's parameters, each of which is taken by its name."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._known: set[str] = set(_IGNORED)

    def require_known(self) -> None:
        """Rejects a parameter that nobody took."""
        for name in self._values:
            if name not in self._known:
                known = ", ".join(sorted(self._known - _IGNORED))
                problem = f"parameter {_shown(name)} is not known to this server; it knows {known}"
                raise InvalidRequestError("UNKNOWN_PARAMETER", problem)

    def choice(self, name: str, choices: Mapping[str, Any], default: Any) -> Any:
        value = self._take(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in choices:
            raise _invalid(name, f"must be one of {', '.join(choices)}")
        return choices[value]

    def boolean(self, name: str) -> bool:
        value = self._take(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise _invalid(name, "must be a boolean")

    def integer(self, name: str, maximum: int) -> int:
        value = self._take(name)
        if value is None:
            return 0
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum:
            return value
        raise _invalid(name, f"must be an integer from 0 to {maximum}")

    def _take(self, name: str) -> Any:
        self._known.add(name)
        return self._values.get(name)


def _invalid(name: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError("INVALID_PARAMETER", f"parameter {name} {problem}")


def _column(name: str, datatype: str, values: NDArray[Any]) -> OutputTensor:
    return OutputTensor(name, datatype, (len(values), 1), values[:, None])


def _shown(text: str) -> str:
    """Returns a client's text in a form that is short and safe to print."""
    return ascii(text[:64])

"""The Open Inference Protocol's view of the model: texts in one BYTES tensor, answers in named tensors.

====================== ================ ==========================================================================
output                 datatype, shape  content
====================== ================ ==========================================================================
embedding              FP32 [n,d]       sentence embeddings; FP16, INT8 or UINT8 with the parameter ``encoding``
embedding_scale        FP32 [n,1]       factor of the integers; only with ``encoding`` = int8
HEAD_probabilities     FP32 [n,k]       calibrated probabilities in the order of the head's labels; not for regression
HEAD_value             FP32 [n,1]       the value of an ordinal or regression head
HEAD_label             BYTES [n,1]      the label that a softmax, sigmoid or ordinal head decides for
HEAD_labels            BYTES [n,1]      the labels of a multilabel head that apply, as a JSON list, most probable first
HEAD_confidence        FP32 [n,1]       the probability of that label; only for a head that abstains
HEAD_abstained         BOOL [n,1]       whether the head does not vouch for that label; only for a head that abstains
novelty                FP32 [n,1]       how new the text is, 0 to 1; only where a call requests it by name
truncated              BOOL [n,1]       whether the model did not read the whole text
error                  BYTES [n,1]      why a text has no answer, empty if it has one; only with ``partial``
====================== ================ ==========================================================================

The protocol has no place for the error of one text. By default the first one fails the call; with the parameter
``partial`` such a text gets NaN and an ``error``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from polyhead_server.errors import InvalidRequestError, ServerError
from polyhead_server.inference import head_answers
from polyhead_server.inference.model import Model
from polyhead_server.inference.novelty import Novelty
from polyhead_server.inference.types import (
    MAX_ITEM_ID_BYTES,
    Encoding,
    ItemOutcome,
    Message,
    RequestOptions,
    Result,
    Task,
    Truncation,
)

from .backend import Backend, first_error, of_text
from .embeddings import encodable, encode_embedding, shorten
from .open_inference_input import CONTENT_TYPES, shown, too_many_elements
from .open_inference_parameters import Parameters
from .open_inference_tensors import DATATYPES, OutputTensor, TensorSpec, column, forms_of, head_tensor
from .option_names import ENCODINGS, TRUNCATION
from .texts import item_from_bytes

TEXT_INPUT = "text"
VERSION = "1"
# Datatype of the embedding, and the numpy type of its encoded bytes.
_EMBEDDING_TYPES = {
    Encoding.FLOAT32_LE: ("FP32", "<f4"),
    Encoding.FLOAT16_LE: ("FP16", "<f2"),
    Encoding.INT8: ("INT8", "i1"),
    Encoding.BINARY: ("UINT8", "u1"),
}
_MAX_PLANS = 256


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


class _Plan(NamedTuple):
    """What a request asks for, besides its texts. See ``InferRequest``."""

    options: RequestOptions
    outputs: tuple[str, ...]
    partial: bool
    timeout_s: float | None


class ModelView:
    """The tensors of one model."""

    def __init__(
        self, manifest: bundle.Manifest, max_items: int, max_text_bytes: int, novelty: Novelty | None = None
    ) -> None:
        """Derives the tensors.

        Args:
            manifest: The bundle's.
            max_items: Maximum number of texts in a call.
            max_text_bytes: How many bytes of a text to decode.
            novelty: Computes the novelty of embeddings; None for a model without it.
        """
        self._novelty = novelty
        self._manifest = manifest
        self._max_items = max_items
        self._max_text_bytes = max_text_bytes
        self._tasks = {"embedding": Task.EMBEDDING, "embedding_scale": Task.EMBEDDING}
        # The index of the head of an output, and the form of the output.
        self._heads: dict[str, tuple[int, str]] = {}
        for form in ("probabilities", "value", "label", "labels", "confidence", "abstained"):
            for index, head in enumerate(manifest.heads):
                if form in forms_of(head):
                    self._tasks[f"{head.name}_{form}"] = head_answers.TASKS[head.kind]
                    self._heads[f"{head.name}_{form}"] = (index, form)
        self._output_names = [spec.name for spec in self.outputs]
        # Of requests without parameters, by the names of the outputs: most clients send the same ones always.
        self._plans: dict[tuple[str, ...], _Plan] = {}

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The labels of each head that has labels, in the order of its probabilities."""
        return {head.name: head.labels for head in self._manifest.heads if head.labels}

    @property
    def inputs(self) -> list[TensorSpec]:
        """The inputs."""
        return [TensorSpec(TEXT_INPUT, "BYTES", (-1, 1))]

    @property
    def outputs(self) -> list[TensorSpec]:
        """The outputs of a call that requests none by name."""
        specs = [TensorSpec("embedding", "FP32", (-1, self._manifest.embedding.dimensions))]
        for name, (index, form) in self._heads.items():
            width = len(self._manifest.heads[index].labels) if form == "probabilities" else 1
            specs.append(TensorSpec(name, DATATYPES.get(form, "BYTES"), (-1, width)))
        return [*specs, TensorSpec("truncated", "BOOL", (-1, 1))]

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
        if len(request_id.encode(errors="surrogatepass")) > MAX_ITEM_ID_BYTES:
            raise InvalidRequestError("ITEM_ID_TOO_LONG", f"id has more than {MAX_ITEM_ID_BYTES} bytes")
        if not texts:
            raise InvalidRequestError("EMPTY_REQUEST", "the input tensor has no elements; send at least one text")
        if len(texts) > self._max_items:
            raise too_many_elements(len(texts), self._max_items)
        key = tuple(outputs)
        plan = None if parameters else self._plans.get(key)
        if plan is None:
            plan = self._plan(outputs, parameters)
            if not parameters:
                if len(self._plans) >= _MAX_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
        items = tuple([item_from_bytes("", text, self._max_text_bytes) for text in texts])
        return InferRequest(Message(items, plan.options), plan.outputs, plan.partial, plan.timeout_s)

    def _plan(self, outputs: Sequence[str], parameters: Mapping[str, Any]) -> _Plan:
        settings = Parameters(parameters)
        encoding = settings.choice("encoding", ENCODINGS, Encoding.FLOAT32_LE)
        partial = settings.boolean("partial")
        wanted = self._wanted(outputs, encoding, partial=partial)
        options = RequestOptions(
            # A call for ``truncated`` alone still has to run the model once.
            tasks=frozenset(self._tasks[name] for name in wanted if name in self._tasks) or frozenset({Task.EMBEDDING}),
            encoding=encoding,
            dimensions=settings.integer("dimensions", self._manifest.embedding.dimensions),
            truncation=settings.choice("truncation", TRUNCATION, Truncation.TRUNCATE),
            prompt=settings.string("prompt"),
            novelty="novelty" in wanted,
        )
        settings.choice("content_type", CONTENT_TYPES, None)
        timeout_us = settings.integer("timeout", 2**63 - 1)
        settings.require_known()
        return _Plan(options, wanted, partial, timeout_us / 1e6 if timeout_us else None)

    def _wanted(self, outputs: Sequence[str], encoding: Encoding, *, partial: bool) -> tuple[str, ...]:
        names = [*self._output_names]
        if encoding is Encoding.INT8:
            names.insert(1, "embedding_scale")
        if partial:
            names.append("error")
        known = [*names, *(["novelty"] if self._novelty else [])]
        for name in outputs:
            if name not in known:
                problem = f"the model has no output {shown(name)}; its outputs are {', '.join(known)}"
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
        numbers: dict[int, NDArray[np.float32]] = {}
        return [self._output(name, request, outcomes, numbers) for name in request.outputs]

    def _output(
        self,
        name: str,
        request: InferRequest,
        outcomes: Sequence[ItemOutcome],
        numbers: dict[int, NDArray[np.float32]],
    ) -> OutputTensor:
        """Makes an output. ``numbers`` holds those of heads that another output has collected, by index."""
        if name in {"embedding", "embedding_scale"}:
            return self._embedding(name, request, outcomes)
        if name == "truncated":
            cut = [isinstance(outcome, Result) and outcome.tokens.cut_at is not None for outcome in outcomes]
            return column(name, "BOOL", np.asarray(cut, dtype=np.bool_))
        if name == "novelty":
            return column(name, "FP32", self._novelties(outcomes))
        if name == "error":
            errors = [str(outcome) if isinstance(outcome, ServerError) else "" for outcome in outcomes]
            return OutputTensor(name, "BYTES", (len(errors), 1), errors)
        index, form = self._heads[name]
        head = self._manifest.heads[index]
        rows = numbers.get(index)  # (n, numbers)
        if rows is None:
            rows = numbers[index] = _stack([_numbers(head, outcome, index) for outcome in outcomes])
        return head_tensor(name, form, head, rows)

    def _novelties(self, outcomes: Sequence[ItemOutcome]) -> NDArray[np.float32]:
        found = np.full(len(outcomes), np.nan, np.float32)
        results = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, Result)}
        if results and self._novelty:
            rows = np.stack([result.output.embedding for result in results.values()])  # (results, dimensions)
            found[list(results)] = self._novelty.score(rows)
        return found

    def _embedding(self, name: str, request: InferRequest, outcomes: Sequence[ItemOutcome]) -> OutputTensor:
        options, info = request.message.options, self._manifest.embedding
        datatype, numpy_type = _EMBEDDING_TYPES[options.encoding]
        results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
        if options.encoding is Encoding.FLOAT32_LE and len(results) == len(outcomes):
            # As most clients ask for them: without a copy of each text's bytes, which takes 4 us a text.
            whole = [shorten(one.output.embedding, options.dimensions, normalized=info.normalized) for one in results]
            rows = _stack(whole).astype(numpy_type, copy=False)  # (n, numbers of an embedding)
            return OutputTensor(name, datatype, (len(rows), rows.shape[1]), rows)
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
            return column(name, "FP32", np.asarray(scales, dtype="<f4"))
        rows = _stack(encoded)  # (n, bytes or numbers of an embedding)
        return OutputTensor(name, datatype, (len(rows), rows.shape[1]), rows)


def view_of(backend: Backend, model: Model) -> ModelView:
    """Derives the tensors of a model, for ``Backend.view``."""
    return ModelView(model.source.manifest, backend.max_items, backend.service.max_text_bytes(), model.novelty)


def _stack(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Stacks rows. Most requests have a single text, for which this takes a tenth of numpy's time."""
    return rows[0][None] if len(rows) == 1 else np.stack(rows)


def _numbers(head: bundle.Head, outcome: ItemOutcome, index: int) -> NDArray[np.float32]:
    """Returns the numbers of a head: (numbers,) float32; NaN without a result."""
    if isinstance(outcome, Result):
        return outcome.output.probabilities[index]
    return np.full(head_answers.numbers_of(head), np.nan, np.float32)

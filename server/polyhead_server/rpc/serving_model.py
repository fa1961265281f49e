"""The model that answers requests, and the preconditions that a request may set on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyhead_server.errors import FingerprintMismatchError, InvalidRequestError
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import InvalidItem, Message, RequestOptions

from .response_encoder import ResponseEncoder


@dataclass(frozen=True)
class ServingModel:
    """A running pipeline and the encoder of its answers. A reload replaces both at once."""

    pipeline: Pipeline
    encoder: ResponseEncoder

    @classmethod
    def from_pipeline(cls, pipeline: Pipeline) -> ServingModel:
        """Pairs a pipeline with the encoder of its model."""
        model = pipeline.model
        return cls(pipeline, ResponseEncoder(model.source.manifest, model.fingerprints))

    def check(self, message: Message) -> Message:
        """Returns the message; with every item invalid if this model does not meet the message's preconditions."""
        options = message.options
        if options.dimensions > self.encoder.dimensions:
            problem = f"the embedding has {self.encoder.dimensions} dimensions, not {options.dimensions}"
            return reject(message, InvalidRequestError("TOO_MANY_DIMENSIONS", problem))
        if options.expected_space or options.expected_heads:
            for component, expected, actual in self._fingerprints(options):
                if expected not in {"", actual}:
                    return reject(message, FingerprintMismatchError(component, expected, actual))
        return message

    def _fingerprints(self, options: RequestOptions) -> Iterator[tuple[str, str, str]]:
        """Yields each component with its expected and its actual fingerprint."""
        actual = self.encoder.fingerprints
        yield "embedding_space", options.expected_space, actual.embedding_space
        heads = {head.head: head.fingerprint for head in actual.heads}
        for name, expected in options.expected_heads:
            yield name, expected, heads.get(name, "")


def reject(message: Message, error: InvalidRequestError) -> Message:
    """Returns a message in which every item is invalid with the same error."""
    return Message(tuple(InvalidItem(item.item_id, error) for item in message.items), message.options)

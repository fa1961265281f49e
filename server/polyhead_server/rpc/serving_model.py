"""The model that answers requests, and the preconditions that a request may set on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from polyhead_server.candidate.selection import is_selected
from polyhead_server.errors import (
    FingerprintMismatchError,
    InvalidRequestError,
    NoveltyNotAvailableError,
    TaskNotAvailableError,
    TooManyItemsError,
    UnknownPromptError,
)
from polyhead_server.inference.intake import Intake
from polyhead_server.inference.types import InvalidItem, Message, RequestOptions

from .response_encoder import MAX_RESPONSE_BYTES, ResponseEncoder


@dataclass(frozen=True)
class ServingModel:
    """A running pipeline and the encoder of its answers. A reload replaces both at once."""

    pipeline: Intake
    encoder: ResponseEncoder

    @classmethod
    def from_pipeline(cls, pipeline: Intake) -> ServingModel:
        """Pairs a pipeline with the encoder of its model."""
        model = pipeline.model
        return cls(pipeline, ResponseEncoder(model.source.manifest, model.fingerprints, model.novelty))

    def check(self, message: Message) -> Message:
        """Returns the message; rejected if this model does not meet the message's preconditions."""
        options = message.options
        if options.dimensions > self.encoder.dimensions:
            problem = f"the embedding has only {self.encoder.dimensions} dimensions"
            return reject(message, InvalidRequestError("TOO_MANY_DIMENSIONS", problem))
        if not options.required_tasks <= self.encoder.tasks:
            missing = sorted(options.required_tasks - self.encoder.tasks, key=lambda task: task.value)
            heads = ", ".join(f"{head.name} ({head.kind})" for head in self.pipeline.model.source.manifest.heads)
            return reject(message, TaskNotAvailableError(missing[0].name.lower(), heads))
        if options.prompt and options.prompt not in self.pipeline.model.source.manifest.prompts:
            return reject(message, UnknownPromptError(tuple(self.pipeline.model.source.manifest.prompts)))
        if options.novelty and not self.encoder.has_novelty:
            return reject(message, NoveltyNotAvailableError())
        if options.expected_space or options.expected_heads:
            for component, expected, actual in self._fingerprints(options):
                if expected not in {"", actual}:
                    return reject(message, FingerprintMismatchError(component, actual))
        return message

    def check_unary(self, message: Message) -> Message:
        """Returns the message of a unary call as ``check`` does; rejected as well if its answers might not fit."""
        message = self.check(message)
        # The answer of one item fits always.
        if message.error or len(message.items) == 1:
            return message
        max_items = self.encoder.max_items(message.options)
        if len(message.items) <= max_items:
            return message
        why = f"are certain to fit into a response of {MAX_RESPONSE_BYTES // 2**20} MiB with these options"
        error = TooManyItemsError(max_items, f"{why}; use a stream for more")
        return reject(Message((InvalidItem("", error),), message.options), error)

    def _fingerprints(self, options: RequestOptions) -> Iterator[tuple[str, str, str]]:
        """Yields each component with its expected and its actual fingerprint."""
        actual = self.encoder.fingerprints
        yield "embedding_space", options.expected_space, actual.embedding_space
        heads = {head.head: head.fingerprint for head in actual.heads}
        for name, expected in options.expected_heads:
            # The name of a head that the model does not have is text of the request.
            yield (name if name in heads else "head"), expected, heads.get(name, "")


@dataclass(frozen=True)
class Canary:
    """The model that answers a share of the calls, 0 to 1, instead of the served one."""

    model: ServingModel
    share: float

    def answers(self, key: str) -> bool:
        """Whether it answers the calls with this key; a call without a key is the served model's."""
        return bool(key) and is_selected(key, self.share)


def reject(message: Message, error: InvalidRequestError) -> Message:
    """Returns the message, of which every item is rejected with the same error."""
    return dataclasses.replace(message, error=message.error or error)

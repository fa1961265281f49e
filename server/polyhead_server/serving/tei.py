"""The meaning of text-embeddings-inference's requests, over gRPC and HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from polyhead_server.errors import InvalidRequestError, UnknownPromptError
from polyhead_server.inference import head_answers
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import Flow, InvalidItem, Item, RequestOptions, Result, Task, Truncation

from .backend import Backend
from .embeddings import shorten

# One id of a vocabulary takes a few microseconds to decode, and to describe.
MAX_TOKENS = 65_536


# What turns the outputs of each kind of head into its scores, by huggingface_hub's names; None for none of them.
FUNCTIONS = {"softmax": "softmax", "sigmoid": "sigmoid", "multilabel": "sigmoid", "ordinal": None, "regression": "none"}


@dataclass(frozen=True, slots=True)
class Head:
    """A head of the model, its position among the heads, and the task that computes it."""

    index: int
    head: bundle.Head
    task: Task

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its scores: its labels, or its own name for a regression head."""
        return self.head.labels or (self.head.name,)


def invalid(field: str, problem: str) -> InvalidRequestError:
    """Returns the error of a field with a value that cannot be served."""
    return InvalidRequestError("INVALID_PARAMETER", f"{field} {problem}")


def head_of(model: Model, name: str) -> Head:
    """Returns a head by its name; without a name the first head of the first task that the model has a head for.

    Raises:
        InvalidRequestError: The model has no such head, or none at all.
    """
    heads = [Head(index, head, head_answers.TASKS[head.kind]) for index, head in enumerate(model.source.manifest.heads)]
    if not heads:
        raise InvalidRequestError("TASK_NOT_AVAILABLE", "the model has no heads and returns embeddings only")
    named = [head for head in heads if head.head.name == name] if name else sorted(heads, key=lambda h: h.task.value)
    if not named:
        known = ", ".join(head.head.name for head in heads)
        raise InvalidRequestError("TASK_NOT_AVAILABLE", f"the model has no head {name[:64]!a}; its heads are {known}")
    return named[0]


def check_raw_scores(head: Head, *, raw_scores: bool) -> None:
    """Checks the field ``raw_scores``: only the scores of a regression head are raw.

    Raises:
        InvalidRequestError: It asks for raw scores of another head.
    """
    if raw_scores and head.head.kind != "regression":
        raise invalid("raw_scores", "is not supported: scores are calibrated probabilities")


def with_truncation(options: RequestOptions, *, truncate: bool) -> RequestOptions:
    """Returns the options with the policy for texts that are too long."""
    return dataclasses.replace(options, truncation=Truncation.TRUNCATE if truncate else Truncation.ERROR)


def embedding(model: Model, result: Result, dimensions: int, *, normalize: bool = True) -> NDArray[np.float32]:
    """Returns the embedding of a result: (dimensions,) float32.

    It has length 1 if ``normalize``, and is otherwise as the model returns it; many models normalize themselves.
    """
    info = model.source.manifest.embedding
    values = shorten(result.output.embedding, dimensions, normalized=info.normalized)
    if normalize and not info.normalized:
        values = values / np.float32(np.linalg.norm(values) or 1)
    return values


def predictions(head: Head, result: Result) -> list[tuple[str, float]]:
    """Returns each label of a head with its probability, most probable first; a regression head's name and value."""
    values = head_answers.by_label(head.head, result.output.probabilities[head.index]).tolist()
    return sorted(zip(head.labels, values, strict=True), key=lambda pair: -pair[1])


async def tokenize(
    backend: Backend, item: Item | InvalidItem, *, special: bool, prompt: str = "", limit: int = MAX_TOKENS
) -> list[dict[str, Any]]:
    """Tokenizes a text without running the model.

    Args:
        backend: Has the tokenizer.
        item: The text.
        special: Whether to add the special tokens that the model reads.
        prompt: Name of the prompt to put before the text; empty for none.
        limit: Largest number of tokens.

    Returns:
        For each token its id, text, whether it is special, and the code points ``start`` and ``stop`` where it has a
        place in the text, of which the prompt is a part here.

    Raises:
        InvalidRequestError: The item is invalid or has too many tokens, or the model has no such prompt.
        OverloadedError: Too many calls wait for the tokenizer.
    """
    if isinstance(item, InvalidItem):
        raise item.error
    model = backend.model()
    prompts = model.source.manifest.prompts
    if prompt and prompt not in prompts:
        raise UnknownPromptError(tuple(prompts))
    text = prompts[prompt] + item.text if prompt else item.text
    encoding = await model.tokenizer.describe(text, Flow(), special=special, limit=limit)
    if encoding is None:
        raise invalid("inputs", f"have more than {MAX_TOKENS} tokens; send fewer texts, or shorter ones")
    return [
        {"id": one.id, "text": one.text, "special": one.special}
        | ({} if one.span is None else {"start": one.span[0], "stop": one.span[1]})
        for one in encoding
    ]


async def decode(backend: Backend, ids: Sequence[int], *, skip_special: bool) -> str:
    """Returns the text of token ids.

    Raises:
        InvalidRequestError: There are too many ids.
    """
    if len(ids) > MAX_TOKENS:
        raise invalid("ids", f"has {len(ids)} elements; at most {MAX_TOKENS} are allowed")
    return await backend.model().tokenizer.decode(ids, Flow(), skip_special=skip_special)

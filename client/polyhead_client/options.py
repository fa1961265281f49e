"""Options of the client's methods: name, type, default and meaning of each, written once.

The methods take them as ``**options: Unpack[...]``, so type checkers verify every call. ``documented`` copies the same
facts into the signature and docstring that ``help()`` shows.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypedDict, TypeVar, get_type_hints

from .choices import Encoding, Order, Task, TruncationPolicy
from .model_info import ModelInfo
from .types import Fingerprints

# Deadline of unary calls: none of them may wait for ever, and a server keeps an item queued for half a minute at most.
DEFAULT_DEADLINE_S = 30.0


@dataclass(frozen=True)
class Option:
    """The default value and the meaning of an option."""

    default: Any
    meaning: str


class UnaryDeadline(TypedDict, total=False):
    """The deadline of a unary method."""

    deadline_s: Annotated[float | None, Option(DEFAULT_DEADLINE_S, "Seconds for the whole call; None for no limit.")]


class RequestOptions(TypedDict, total=False):
    """Options of every method that sends texts."""

    truncation: Annotated[
        TruncationPolicy,
        Option(
            "truncate",
            '``"truncate"`` reads only the beginning of a text that exceeds the token limit, ``"error"`` rejects the '
            'text, ``"window"`` reads it in overlapping windows and pools their outputs.',
        ),
    ]
    prompt: Annotated[
        str | None,
        Option(
            None,
            'Name of a prompt of the model, whose text the server puts before every text, such as ``"query"``; those '
            "that the model has are in ``ModelInfo.prompts``. None for no prompt.",
        ),
    ]
    include_timings: Annotated[bool, Option(False, "Add the time that each step took on the server to every result.")]
    include_novelty: Annotated[
        bool,
        Option(
            False,
            "Add to every result how new its text is to the model; those that can tell have ``ModelInfo.has_novelty``.",
        ),
    ]
    include_prediction_sets: Annotated[
        bool,
        Option(
            False,
            "Add ``prediction_set`` to the outputs of heads that have such sets; ``HeadInfo.prediction_sets`` tells.",
        ),
    ]
    expected_fingerprints: Annotated[
        Fingerprints | ModelInfo | None,
        Option(
            None,
            "Fingerprints of a model or of an earlier result. An item that other weights would answer is rejected with "
            "``FINGERPRINT_MISMATCH``. Empty fields match anything; None checks nothing.",
        ),
    ]


class TaskOptions(TypedDict, total=False):
    """Options of the methods that compute several tasks."""

    tasks: Annotated[
        Iterable[Task],
        Option(
            (),
            'Any of ``"embedding"``, ``"classification"``, ``"sentiment"``, ``"labels"``, ``"score"``; empty for all '
            "that the model has.",
        ),
    ]


class EmbeddingOptions(TypedDict, total=False):
    """Options of the methods that return embeddings."""

    encoding: Annotated[
        Encoding,
        Option(
            "float32",
            'Encoding of embeddings on the wire: ``"float32"``, ``"float16"`` for half the bytes, ``"int8"`` for a '
            'quarter, ``"binary"`` for the signs only, returned as -1 and 1.',
        ),
    ]
    dimensions: Annotated[
        int | None, Option(None, "Number of leading values of each embedding to return; None for all.")
    ]


class StreamOptions(RequestOptions, total=False):
    """Options of every streaming method; all those of ``stream_classify`` and ``stream_sentiment``."""

    order: Annotated[
        Order,
        Option(
            "request", 'Order of the answers: ``"request"``, or ``"completion"`` to get each as soon as it is done.'
        ),
    ]
    max_in_flight: Annotated[
        int | None,
        Option(
            None,
            "Maximum number of items sent and not yet answered; None adapts it to the measured throughput. In request "
            "order, up to five times as many texts are read from the input.",
        ),
    ]
    deadline_s: Annotated[float | None, Option(None, "Seconds for the whole stream; None for no limit.")]


class UnaryOptions(RequestOptions, UnaryDeadline, total=False):
    """Options of ``classify``, ``sentiment``, ``labels`` and ``score``."""


class EmbedOptions(RequestOptions, EmbeddingOptions, UnaryDeadline, total=False):
    """Options of ``embed`` and ``embeddings``."""


class AnalyzeOptions(TaskOptions, RequestOptions, EmbeddingOptions, UnaryDeadline, total=False):
    """Options of ``analyze``."""


class StreamAnalyzeOptions(TaskOptions, StreamOptions, EmbeddingOptions, total=False):
    """Options of ``stream``."""


class StreamEmbedOptions(StreamOptions, EmbeddingOptions, total=False):
    """Options of ``stream_embed``."""


MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def resolve(kind: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in the defaults of the options that were not given.

    Args:
        kind: The TypedDict of the method.
        options: Options by name.

    Raises:
        TypeError: An option is unknown.
    """
    defaults = _defaults(kind)
    for name in options:
        if name not in defaults:
            raise TypeError(f"unexpected option {name!r}; the options are {', '.join(defaults)}")
    return {**defaults, **options}


def documented(kind: Any) -> Callable[[MethodT], MethodT]:
    """Adds the options of ``kind`` to the signature and docstring of a method with ``**options``."""

    def document(method: MethodT) -> MethodT:
        hints = get_type_hints(kind, include_extras=True)
        signature = inspect.signature(method)
        parameters = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        lines = []
        for name, hint in hints.items():
            (option,) = hint.__metadata__
            annotation = re.sub(r"\b[a-z_.]+\.", "", inspect.formatannotation(hint.__origin__))
            parameters.append(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=hint.__origin__
                )
            )
            text = f"{name} ({annotation}, default {option.default!r}): {option.meaning}"
            lines.append(textwrap.fill(text, 112, initial_indent=" " * 12, subsequent_indent=" " * 16))
        method.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        if method.__doc__:  # absent with python -OO
            method.__doc__ = re.sub(r" *\*\*options: .*", lambda _: "\n".join(lines), method.__doc__)
        return method

    return document


@cache
def _defaults(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0].default for name, hint in hints.items()}

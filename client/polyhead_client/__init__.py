"""A client for a polyhead server: ``Client`` for threads, ``AsyncClient`` for asyncio, and the ``polyhead`` command.

::

    cli --> client, aio --> _base --> session --> streaming, batch --> core (no I/O) --> conversion --> values
                              |          `--> transport (channels, pool, credentials, threads or tasks)
                              `--> options
    values: model_info, types, head_outputs, errors
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from polyhead.commands import missing_package

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .choices import Encoding, Order, Task, TruncationPolicy
    from .client import Client
    from .core.stream_state import Text
    from .errors import (
        AccessDeniedError,
        DeadlineExceededError,
        InvalidRequestError,
        ItemFailedError,
        PolyheadError,
        ResourceExhaustedError,
        ServerError,
        UnavailableError,
    )
    from .head_outputs import Classification, HeadOutput, LabelScore, LabelSet, Score, Sentiment
    from .model_info import Abstention, EmbeddingInfo, HeadInfo, Limits, ModelInfo, PredictionSets, RuntimeInfo
    from .options import (
        AnalyzeOptions,
        EmbedOptions,
        StreamAnalyzeOptions,
        StreamEmbedOptions,
        StreamOptions,
        UnaryOptions,
    )
    from .transport.credentials import Tls
    from .types import Answer, Fingerprints, ItemError, Result, Timings, Truncation

# The modules are imported when a name is used, so that ``import polyhead_client`` works without the extra, and --help
# does not wait for numpy and gRPC.
_MODULES = {
    "aio": ("AsyncClient",),
    "choices": ("Encoding", "Order", "Task", "TruncationPolicy"),
    "client": ("Client",),
    "core.stream_state": ("Text",),
    "errors": (
        "AccessDeniedError",
        "DeadlineExceededError",
        "InvalidRequestError",
        "ItemFailedError",
        "PolyheadError",
        "ResourceExhaustedError",
        "ServerError",
        "UnavailableError",
    ),
    "head_outputs": ("Classification", "HeadOutput", "LabelScore", "LabelSet", "Score", "Sentiment"),
    "model_info": ("Abstention", "EmbeddingInfo", "HeadInfo", "Limits", "ModelInfo", "PredictionSets", "RuntimeInfo"),
    "options": (
        "AnalyzeOptions",
        "EmbedOptions",
        "StreamAnalyzeOptions",
        "StreamEmbedOptions",
        "StreamOptions",
        "UnaryOptions",
    ),
    "transport.credentials": ("Tls",),
    "types": ("Answer", "Fingerprints", "ItemError", "Result", "Timings", "Truncation"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Abstention",
    "AccessDeniedError",
    "AnalyzeOptions",
    "Answer",
    "AsyncClient",
    "Classification",
    "Client",
    "DeadlineExceededError",
    "EmbedOptions",
    "EmbeddingInfo",
    "Encoding",
    "Fingerprints",
    "HeadInfo",
    "HeadOutput",
    "InvalidRequestError",
    "ItemError",
    "ItemFailedError",
    "LabelScore",
    "LabelSet",
    "Limits",
    "ModelInfo",
    "Order",
    "PolyheadError",
    "PredictionSets",
    "ResourceExhaustedError",
    "Result",
    "RuntimeInfo",
    "Score",
    "Sentiment",
    "ServerError",
    "StreamAnalyzeOptions",
    "StreamEmbedOptions",
    "StreamOptions",
    "Task",
    "Text",
    "Timings",
    "Tls",
    "Truncation",
    "TruncationPolicy",
    "UnaryOptions",
    "UnavailableError",
]


if not TYPE_CHECKING:  # it would make every misspelt name valid

    def __getattr__(name: str) -> Any:
        """Imports a public name.

        Raises:
            ModuleNotFoundError: A package of the extra ``client`` is not installed.
        """
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"polyhead_client {missing_package(error, 'client')}", name=error.name) from None
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

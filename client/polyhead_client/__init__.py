"""A client for a polyhead server: ``Client`` for threads, ``AsyncClient`` for asyncio, and the ``polyhead`` command.

::

    cli --> client, aio --> _base --> session --> streaming, batch --> core (no I/O) --> conversion --> types, errors
                              |          `--> transport (channels, pool, credentials, threads or tasks)
                              `--> options
"""

from .aio import AsyncClient
from .client import Client
from .conversion import Encoding, Order, Task, TruncationPolicy
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
from .options import AnalyzeOptions, StreamAnalyzeOptions, StreamEmbedOptions, StreamOptions
from .transport.credentials import Tls
from .types import (
    Answer,
    Classification,
    EmbeddingInfo,
    Fingerprints,
    HeadInfo,
    ItemError,
    LabelScore,
    Limits,
    ModelInfo,
    Result,
    RuntimeInfo,
    Sentiment,
    Timings,
    Truncation,
)

__all__ = [
    "AccessDeniedError",
    "AnalyzeOptions",
    "Answer",
    "AsyncClient",
    "Classification",
    "Client",
    "DeadlineExceededError",
    "EmbeddingInfo",
    "Encoding",
    "Fingerprints",
    "HeadInfo",
    "InvalidRequestError",
    "ItemError",
    "ItemFailedError",
    "LabelScore",
    "Limits",
    "ModelInfo",
    "Order",
    "PolyheadError",
    "ResourceExhaustedError",
    "Result",
    "RuntimeInfo",
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
    "UnavailableError",
]

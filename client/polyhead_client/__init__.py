"""A client for a polyhead server: ``Client`` for threads, ``AsyncClient`` for asyncio, and the ``polyhead`` command.

::

    cli --> client, aio --> unary, calls --> flow --> retries, window --> conversion --> results, model_info, errors
                              `--> connections, hedging, credentials, channel
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
from .model_info import EmbeddingInfo, HeadInfo, Limits, ModelInfo, RuntimeInfo
from .transport.credentials import Tls
from .types import Answer, Classification, Fingerprints, ItemError, LabelScore, Result, Sentiment, Timings, Truncation

__all__ = [
    "AccessDeniedError",
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
    "Task",
    "Text",
    "Timings",
    "Tls",
    "Truncation",
    "TruncationPolicy",
    "UnavailableError",
]

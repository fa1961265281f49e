"""Names of the choices of a call, and defaults, without the packages that a call requires: ``--help`` shows them."""

from __future__ import annotations

from typing import Literal

Task = Literal["embedding", "classification", "sentiment", "labels", "score"]
TruncationPolicy = Literal["truncate", "error", "window"]
Order = Literal["request", "completion"]
Encoding = Literal["float32", "float16", "int8", "binary"]

# The server's default address.
DEFAULT_TARGET = "127.0.0.1:50051"

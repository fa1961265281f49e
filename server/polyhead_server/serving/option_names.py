"""Names of the values that options have, equal in all protocols that send them as text."""

from __future__ import annotations

from polyhead_server.inference.types import Encoding, Truncation

TRUNCATION = {policy.name.lower(): policy for policy in Truncation}
ENCODINGS = {
    "float32": Encoding.FLOAT32_LE,
    "float16": Encoding.FLOAT16_LE,
    "int8": Encoding.INT8,
    "binary": Encoding.BINARY,
}

"""The pipes to ``CandidateProcess``, as the process that it starts handles them: lines of JSON in both directions."""

from __future__ import annotations

import json
import os
from typing import Any, BinaryIO, TypeVar

from polyhead_server.json_dataclasses import from_json, to_json

C = TypeVar("C")


def open_pipes(kind: type[C]) -> tuple[BinaryIO, BinaryIO, C]:
    """Takes over standard input and output, and reads the configuration.

    Args:
        kind: Dataclass of the configuration.

    Returns:
        The input, the output for ``write``, and the configuration.
    """
    lines = os.fdopen(os.dup(0), "rb")
    # What a library prints goes to standard error.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    config: C = from_json(kind, json.loads(lines.readline()))
    return lines, output, config


def write(output: BinaryIO, message: Any) -> None:
    """Writes a dataclass as a line."""
    output.write(json.dumps(to_json(message), default=str).encode() + b"\n")
    output.flush()

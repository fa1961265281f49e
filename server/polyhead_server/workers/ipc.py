"""What a supervisor and its workers say to each other: lines of JSON over a worker's standard input and output.

::

    supervisor -> worker   the first line: what ``Start`` holds
                           {"do": n, "what": ..., "arguments": {...}}
                           {"answers": n, "workers": [...]} or {"answers": n, "message": ...}
    worker -> supervisor   {"serving": identity}
                           {"done": n, "answer": {...}} or {"failed": n, "message": ...}
                           {"ask": n, "what": ..., "arguments": {...}}

A worker that asks is answered for all workers; it is one of those that are told to do what it asked.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead_server.settings import Settings

# Labels of a large model fill long lines.
MAX_LINE_BYTES = 64 * 2**20

Values = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """The first line.

    Attributes:
        settings: What the worker is told.
        cores: Those that are its alone; none where a quota, and not the machine, is what workers share.
        identity: Of the model that serves, which a new one must be able to follow; None where none serves yet.
        drained: Whether an operator has drained the server.
        metrics_folder: Where workers count together; empty where nobody asks.
    """

    settings: Settings
    cores: list[int]
    identity: Values | None = None
    drained: bool = False
    metrics_folder: str = ""

    def encode(self) -> bytes:
        """As a line."""
        values = dataclasses.asdict(self)
        values["settings"]["bundle"] = str(self.settings.bundle)
        return line(values)

    @classmethod
    def decode(cls, data: bytes) -> Start:
        """What ``encode`` wrote."""
        values = json.loads(data)
        values["settings"] = Settings(**values["settings"] | {"bundle": Path(values["settings"]["bundle"])})
        return cls(**values)


def line(values: Values) -> bytes:
    """Values as one line."""
    return json.dumps(values).encode() + b"\n"

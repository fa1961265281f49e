"""docs/errors.md names every reason that the server can give, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from polyhead_server.rpc.request_decoder import _known
from polyhead_server.rpc.status import TABLE

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "server/polyhead_server"


def documented() -> set[str]:
    text = (ROOT / "docs/errors.md").read_text()
    return set(re.findall(r"^\| `[A-Z_]+` \| `([A-Z0-9_]+)` \|", text, re.MULTILINE))


def raised() -> set[str]:
    """Reasons written in the sources: literals, and those that ``_known`` makes of a field's name."""
    text = "\n".join(path.read_text() for path in SOURCES.glob("*.py"))
    literal = set(re.findall(r"(?:InvalidRequestError|_unread)\(\s*\"([A-Z0-9_]+)\"", text))
    fields = set(re.findall(rf"{_known.__name__}\(.*?\"(\w+)\"\)", text))
    table = {reason for _, reason in TABLE.values()} - {"INVALID_REQUEST"}
    return literal | table | {f"UNKNOWN_{field.upper()}" for field in fields}


def test_documented_reasons_are_those_that_the_server_gives() -> None:
    assert documented() == raised()

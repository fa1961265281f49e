"""The documentation lists every reason that the server sends, and no other."""

from __future__ import annotations

import re

from polyhead_server import errors
from polyhead_server.rpc.request_decoder import _lookup

from tests.support import sources


def documented() -> set[str]:
    text = sources.documentation_page("| `INVALID_ARGUMENT` | `TEXT_NOT_UTF8` |").read_text()
    return set(re.findall(r"^\| `[A-Z_]+` \| `([A-Z0-9_]+)` \|", text, re.MULTILINE))


def raised() -> set[str]:
    """Reasons in the sources: of classes, of instances of ``InvalidRequestError``, and those built from field names."""
    text = sources.source_text("server/polyhead_server")
    instances = set(re.findall(r"InvalidRequestError\(\s*\"([A-Z0-9_]+)\"", text))
    fields = set(re.findall(rf"{_lookup.__name__}\(.*?\"(\w+)\"\)", text))
    classes = {
        vars(kind)["reason"] for kind in vars(errors).values() if isinstance(kind, type) and "reason" in vars(kind)
    }
    assert len(instances) > 5
    assert len(fields) > 3
    assert len(classes) > 8
    return instances | classes | {f"UNKNOWN_{field.upper()}" for field in fields}


def test_documented_reasons_are_those_that_the_server_sends() -> None:
    assert documented() == raised()

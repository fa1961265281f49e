"""The documentation lists every reason that the server sends, and no other."""

from __future__ import annotations

import re

from tests.support import sources


def documented() -> set[str]:
    text = sources.documentation_page("| `INVALID_ARGUMENT` | `TEXT_NOT_UTF8` |").read_text()
    return set(re.findall(r"^\| `[A-Z_]+` \| `([A-Z0-9_]+)` \|", text, re.MULTILINE))


def test_documented_reasons_are_those_that_the_server_sends() -> None:
    assert documented() == sources.error_reasons()

"""Fixtures of the tests of the command."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes imports of rich fail, as in the image of the server, where it is not installed."""
    for name in [name for name in sys.modules if name.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)

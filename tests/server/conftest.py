"""Fixtures of the server's tests: a model with a word-level tokenizer and a fake engine, and settings."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from polyhead_server.inference.scheduler import BatchLimits, BatchScheduler
from polyhead_server.settings import Settings

from tests.support.fake_model import engine, manifest, model, tokenizer, tokenizer_file

__all__ = ["engine", "manifest", "model", "tokenizer", "tokenizer_file"]


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Makes settings with one compute thread unless another number is given."""

    def make(**values: object) -> Settings:
        return Settings(**{"bundle": Path("fake"), "threads": 1, **values})  # type: ignore[arg-type]

    return make


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces the worker processes by a script of a few lines."""

    def play(source: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable} -IS\n{textwrap.dedent(source)}")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return play


@pytest.fixture
async def scheduler() -> BatchScheduler:
    return BatchScheduler(BatchLimits(max_tokens=100, max_padding=0.12, overhead_tokens=16))

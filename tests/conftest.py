"""Fixtures that several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import demo


@pytest.fixture(scope="session")
def demo_run() -> Path:
    """The run directory of the demo model; tests must not change it."""
    return demo.demo_run()


@pytest.fixture(scope="session")
def demo_bundle() -> Path:
    """The verified bundle of the demo model; tests must not change it."""
    return demo.demo_bundle()

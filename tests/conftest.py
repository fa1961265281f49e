"""Fixtures that several packages share, and the order of the tests."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support import demo

# The environments of the adapters and of Ray do without it.
if importlib.util.find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    # How long an example takes says something about the machine.
    settings.register_profile("no deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def demo_run() -> Path:
    """The run directory of the demo model; tests must not change it."""
    return demo.demo_run()


@pytest.fixture(scope="session")
def demo_bundle() -> Path:
    """The verified bundle of the demo model; tests must not change it."""
    return demo.demo_bundle()


_DEMO = pytest.StashKey[subprocess.Popen[bytes]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Trains the demo model in the background of a parallel run of all tests, so that no worker waits for it."""
    config = session.config
    parallel = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if parallel and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        command = [sys.executable, "-m", "tests.support.demo"]
        config.stash[_DEMO] = subprocess.Popen(
            command, cwd=demo.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Waits for the demo model, which the tests that use it have waited for already."""
    if (process := session.config.stash.get(_DEMO, None)) is not None:
        process.wait()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Orders the selected tests of a parallel run, so that no worker is left with a long one at the end.

    Those that state their minutes come first, the longest of all at the beginning. Then come large files before small
    ones, and those that use the demo model in the second half. pytest-xdist keeps this order with
    ``--no-loadscope-reorder``.
    """
    if not hasattr(config, "workerinput"):
        return
    counts = Counter(item.path for item in items)
    users = {item.path for item in items if {"demo_run", "demo_bundle"} & set(getattr(item, "fixturenames", ()))}
    places: dict[Path, float] = {}
    for files, start in ((counts.keys() - users, 0.0), (users, 0.5)):
        ordered = sorted(files, key=lambda path: (-counts[path], path))
        places |= {path: start + (1 - start) * number / len(ordered) for number, path in enumerate(ordered)}
    items.sort(key=lambda item: (-_minutes(item), places[item.path]))


def _minutes(item: pytest.Item) -> float:
    marker = item.get_closest_marker("slow")
    return float(marker.kwargs.get("minutes", 0)) if marker else 0.0

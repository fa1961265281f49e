from __future__ import annotations

import os
from pathlib import Path

import pytest
from polyhead_server import settings
from polyhead_server.errors import StartupError


@pytest.mark.parametrize(
    ("content", "cores"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("?", 8)]
)
def test_cores_are_bounded_by_the_quota(
    content: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_max = tmp_path / "cpu.max"
    cpu_max.write_text(content)
    monkeypatch.setattr(settings, "CGROUP_CPU_MAX", cpu_max)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert settings.usable_cores() == cores


def test_cores_without_a_cgroup_are_those_of_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "CGROUP_CPU_MAX", tmp_path / "missing")
    assert settings.usable_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("name", "value"), [("threads", -1), ("stream_window", 0), ("workers", 0)])
def test_number_with_which_nothing_works_is_refused(name: str, value: int) -> None:
    with pytest.raises(StartupError, match=name.replace("_", "-")):
        settings.Settings(bundle=Path("x"), **{name: value})  # type: ignore[arg-type]


def test_threads_that_were_asked_for_are_taken() -> None:
    assert settings.Settings(bundle=Path("x"), threads=3).compute_threads("cuda") == 3


def test_gpu_is_fed_by_two_threads() -> None:
    assert settings.Settings(bundle=Path("x")).compute_threads("cuda") == 2

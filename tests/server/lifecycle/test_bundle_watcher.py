"""Changes of a bundle on disk: which are reloaded, and when."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from polyhead_server.lifecycle.bundle_watcher import BundleWatcher

Step = Callable[[Path], None]


def nothing(bundle: Path) -> None:
    pass


def write(name: str, text: str) -> Step:
    def step(bundle: Path) -> None:
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text(text)

    return step


def replace_manifest(text: str) -> Step:
    def step(bundle: Path) -> None:
        (bundle / "fresh").write_text(text)
        (bundle / "fresh").rename(bundle / "bundle.json")

    return step


def remove_manifest(bundle: Path) -> None:
    (bundle / "bundle.json").rename(bundle / "elsewhere")


def restore_manifest(bundle: Path) -> None:
    (bundle / "elsewhere").rename(bundle / "bundle.json")


def change_mode(bundle: Path) -> None:
    (bundle / "bundle.json").chmod(0o600)
    bundle.chmod(0o700)


def change_time(bundle: Path) -> None:
    os.utime(bundle / "bundle.json", (1, 1))


def replace_by_a_pipe(bundle: Path) -> None:
    (bundle / "bundle.json").unlink()
    os.mkfifo(bundle / "bundle.json")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "bundle.json").write_text("1")
    (folder / "model.onnx").write_text("1")
    return folder


async def reloads(bundle: Path, steps: list[Step], accepted: Callable[[], bool]) -> list[int]:
    """Takes one step before each look; returns the number of each look that led to a reload."""
    looks = 0
    seen: list[int] = []
    watcher = BundleWatcher(bundle)

    async def sleep(interval_s: float) -> None:
        nonlocal looks
        assert interval_s == 5
        if looks == len(steps):
            raise TimeoutError
        steps[looks](bundle)
        looks += 1

    async def reload() -> bool:
        seen.append(looks)
        return accepted()

    with pytest.raises(TimeoutError):
        await watcher.watch(reload, 5, sleep)
    return seen


CASES: dict[str, tuple[list[Step], list[int]]] = {
    "each new manifest once": ([nothing, write("bundle.json", "22"), nothing, replace_manifest("3"), nothing], [2, 4]),
    "not its mode": ([nothing, change_mode, nothing], []),
    "not its time": ([nothing, change_time, nothing], []),
    "not the same content": ([nothing, write("bundle.json", "1"), nothing], []),
    "another file of the same content": ([nothing, replace_manifest("1"), nothing], [2]),
    "not other files of a bundle that serves": ([write("model.onnx", "2"), nothing, nothing], []),
    "once it is there again": ([remove_manifest, nothing, write("bundle.json", "22"), nothing], [3]),
    "not if it was gone for a moment": ([remove_manifest, nothing, restore_manifest, nothing], []),
    "not a pipe, which would block": ([replace_by_a_pipe, nothing], []),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("steps", "expected"), CASES.values(), ids=list(CASES))
async def test_bundle_is_reloaded(steps: list[Step], expected: list[int], bundle: Path) -> None:
    assert await reloads(bundle, steps, lambda: True) == expected


async def test_incomplete_bundle_is_reloaded_once_its_files_have_come_to_rest(bundle: Path) -> None:
    """The manifest comes first; then a large file grows from one look to the next, and a small one follows."""

    def complete() -> bool:
        return (bundle / "torch/config.json").exists()

    steps = [
        write("bundle.json", "22"),
        nothing,
        write("model.onnx", "22"),
        write("model.onnx", "2222"),
        write("torch/config.json", "2"),
        nothing,
        nothing,
        write("model.onnx", "2"),
        nothing,
    ]
    assert await reloads(bundle, steps, complete) == [1, 6]


async def test_refused_bundle_is_not_loaded_again_until_it_changes(bundle: Path) -> None:
    steps = [write("bundle.json", "22"), nothing, nothing, nothing, replace_manifest("3"), nothing, nothing]
    assert await reloads(bundle, steps, lambda: False) == [1, 5]


async def test_link_counts_as_the_bundle_that_it_leads_to(bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "served"
    link.symlink_to(bundle)
    other = tmp_path / "other"
    other.mkdir()
    (other / "bundle.json").write_text("2")

    def switch(_: Path) -> None:
        fresh = tmp_path / "fresh"
        fresh.symlink_to(other)
        fresh.rename(link)

    assert await reloads(link, [nothing, switch, nothing], lambda: True) == [2]


async def test_link_that_leads_to_itself_is_no_bundle(bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(bundle)
    other = tmp_path / "other"
    other.mkdir()
    (other / "bundle.json").write_text("2")

    def lead_to(target: Path) -> Step:
        def step(_: Path) -> None:
            link.unlink()
            link.symlink_to(target)

        return step

    assert await reloads(link, [lead_to(link), lead_to(other), nothing], lambda: True) == [2]

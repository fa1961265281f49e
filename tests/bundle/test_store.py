"""A written bundle loads unchanged; a bundle that was modified is rejected."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import polyhead_bundle as bundle
import pytest
from polyhead_bundle import BundleError, FormatError, IntegrityError, atomic_directory, store

from tests.support.small_bundle import FILES, MANIFEST, changed_manifest, write_demo_bundle, write_sources


def test_written_bundle_loads_unchanged(tmp_path: Path) -> None:
    first = write_demo_bundle(tmp_path)
    loaded = bundle.load(tmp_path / "demo")
    assert loaded == first
    assert dataclasses.replace(loaded.manifest, files={}) == MANIFEST
    assert {name: loaded.file(name).read_bytes() for name in loaded.manifest.files} == FILES
    assert loaded.model_id == f"demo-{loaded.digest[:12]}"


def test_same_content_gives_the_same_manifest(tmp_path: Path) -> None:
    first, second = write_demo_bundle(tmp_path / "a"), write_demo_bundle(tmp_path / "b")
    assert (first.path / "bundle.json").read_bytes() == (second.path / "bundle.json").read_bytes()


def test_path_of_an_unlisted_file_is_an_error(tmp_path: Path) -> None:
    loaded = write_demo_bundle(tmp_path)
    with pytest.raises(IntegrityError, match="secret: is not a file of this bundle"):
        loaded.file("../secret")


@pytest.mark.parametrize("name", [*FILES, "bundle.json"])
def test_every_flipped_bit_is_rejected(tmp_path: Path, name: str) -> None:
    path = write_demo_bundle(tmp_path).path / name
    content = path.read_bytes()
    # Every bit of the small files; in the larger manifest, a bit of every fifth byte, at varying positions.
    bits = range(len(content) * 8) if name != "bundle.json" else range(0, len(content) * 8, 41)
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(FormatError if name == "bundle.json" else IntegrityError):
            bundle.load(tmp_path / "demo")
    path.write_bytes(content)
    bundle.load(tmp_path / "demo")


def test_unreadable_folder_is_an_integrity_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir = write_demo_bundle(tmp_path).path, os.scandir

    def deny(path: Path | str) -> object:
        if Path(path).name == "torch":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(IntegrityError, match="torch: cannot be read: Permission denied"):
        bundle.load(root)


def test_missing_directory_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such directory"):
        bundle.load(tmp_path / "nothing")


def test_unreadable_file_is_an_integrity_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_demo_bundle(tmp_path).path

    def deny(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(store, "sha256_of", deny)
    with pytest.raises(IntegrityError, match="cannot be read: Permission denied"):
        bundle.load(root)


def test_bundle_replaces_a_bundle(tmp_path: Path) -> None:
    write_demo_bundle(tmp_path)
    again = write_demo_bundle(tmp_path, changed_manifest(name="second"))
    assert bundle.load(again.path).manifest.name == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "sources"]


def test_bundle_with_damaged_weights_is_replaced(tmp_path: Path) -> None:
    (write_demo_bundle(tmp_path).path / "model.onnx").write_bytes(b"wrong")
    assert bundle.load(write_demo_bundle(tmp_path).path).file("model.onnx").read_bytes() == FILES["model.onnx"]


def test_bundle_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    target = write_demo_bundle(tmp_path).path
    (tmp_path / "link").symlink_to(target)
    bundle.write(tmp_path / "link", changed_manifest(name="second"), write_sources(tmp_path / "sources"))
    assert (tmp_path / "link").is_symlink()
    assert bundle.load(target).manifest.name == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "link", "sources"]


def _folder_of_another_kind(root: Path) -> None:
    root.mkdir()
    (root / "thesis.txt").write_text("draft")


def _bundle_json_of_another_program(root: Path) -> None:
    _folder_of_another_kind(root)
    (root / "bundle.json").write_text('{"name": "a web page\'s bundle"}')


def _bundle_with_notes(root: Path) -> None:
    shutil.copytree(write_demo_bundle(root.parent / "other").path, root)
    (root / "thesis.txt").write_text("draft")


def _regular_file(root: Path) -> None:
    root.write_text("draft")


@pytest.mark.parametrize(
    "occupy", [_folder_of_another_kind, _bundle_json_of_another_program, _bundle_with_notes, _regular_file]
)
def test_directory_that_is_not_a_bundle_is_never_replaced(tmp_path: Path, occupy: Callable[[Path], None]) -> None:
    occupy(tmp_path / "demo")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    files = write_sources(tmp_path.parent / f"{tmp_path.name}-sources")
    with pytest.raises(BundleError, match="was left unchanged"):
        bundle.write(tmp_path / "demo", MANIFEST, files)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("module", "step"),
    [(store, "sha256_of"), (store, "load"), (store, "replace_directory"), (atomic_directory, "sync_tree")],
)
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_write_leaves_the_old_bundle_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str, error: BaseException
) -> None:
    old = write_demo_bundle(tmp_path)

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail)
        with pytest.raises(type(error)):
            write_demo_bundle(tmp_path, changed_manifest(name="second"))
    assert bundle.load(old.path) == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "sources"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [True, False], ids=["after the first", "instead of the second"])
def test_interrupted_rename_restores_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, after: bool
) -> None:
    old, rename, calls = write_demo_bundle(tmp_path), Path.rename, []

    def interrupt(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2 and not after:
            raise error
        found = rename(self, target)
        if len(calls) == 1 and after:
            raise error
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupt)
        with pytest.raises(type(error)):
            write_demo_bundle(tmp_path, changed_manifest(name="second"))
    assert len(calls) == (2 if after else 3)
    assert bundle.load(old.path) == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "sources"]


def test_fingerprint_distinguishes_its_parts() -> None:
    assert bundle.fingerprint("ab", "c") != bundle.fingerprint("a", "bc")
    assert bundle.fingerprint("ab", b"c") == bundle.fingerprint(b"ab", "c")
    assert len(bundle.fingerprint()) == 16


def test_fingerprint_is_stable_between_releases() -> None:
    assert bundle.fingerprint("ab", b"c") == "601d5476e2ccfe2c"

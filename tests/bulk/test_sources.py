from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path
from typing import Any

import pytest
from polyhead_bulk import UsageError
from polyhead_bulk.sources import Source, find_sources


def touch(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(folder: Path, sources: list[Source]) -> list[str]:
    return [str(Path(source.name).relative_to(folder)) for source in sources]


def test_arguments_keep_their_order_and_a_glob_is_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        touch(tmp_path / name)
    found = find_sources([f"{tmp_path}/c.csv", f"{tmp_path}/*.jsonl"], tmp_path / "out")
    assert names(tmp_path, found) == ["c.csv", "a.jsonl", "b.jsonl"]


def test_a_folder_is_read_with_its_partitions(tmp_path: Path) -> None:
    for name in (
        "in/year=2026/lang=de%20AT/x.parquet",
        "in/year=2025/x.jsonl.gz",
        "in/year=__HIVE_DEFAULT_PARTITION__/y.pq",
        "in/_SUCCESS",
        "in/.x.parquet.crc",
        "in/_temporary/z.parquet",
        "in/readme.txt",
    ):
        touch(tmp_path / name)
    found = find_sources([str(tmp_path / "in")], tmp_path / "out")
    assert [(source.format, source.compression, dict(source.partitions)) for source in found] == [
        ("jsonl", "gzip", {"year": "2025"}),
        ("parquet", None, {"year": "2026", "lang": "de AT"}),
        ("parquet", None, {"year": None}),
    ]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{}/missing.parquet"], "no such file or folder"),
        (["{}/*.parquet"], "matches no file"),
        (["{}/empty"], "contains no input file"),
        (["{}/a.txt"], "unknown file extension"),
        (["{}/a.jsonl", "{}/./a.jsonl"], "is named twice"),
        (["{}/a.jsonl", "{}/link.jsonl"], "is named twice"),
        (["{}/a.parquet.gz"], "own compression"),
        (["{}"], "is in the input folder"),
        (["{}/out/part.jsonl"], "is in the output folder"),
        (["nowhere://bucket/a.parquet"], "requires pip install 'fsspec"),
        (["{}/pipe.jsonl"], "not a regular file"),
        (["{}/dangling"], "dangling/b.jsonl: leads to a file or folder that does not exist: restore it"),
        (["{}/unmounted"], "unmounted/year=2026: leads to a file or folder that does not exist"),
        (["{}/dangling/*.jsonl"], "dangling/b.jsonl: leads to a file or folder that does not exist"),
    ],
)
def test_inputs_that_cannot_be_are_refused(tmp_path: Path, arguments: list[str], problem: str) -> None:
    for name in ("a.txt", "a.jsonl", "a.parquet.gz", "out/part.jsonl"):
        touch(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    touch(tmp_path / "dangling/a.jsonl")
    (tmp_path / "dangling/b.jsonl").symlink_to(tmp_path / "missing.jsonl")
    (tmp_path / "unmounted").mkdir()
    (tmp_path / "unmounted/year=2026").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UsageError, match=problem):
        find_sources([argument.format(tmp_path) for argument in arguments], tmp_path / "out")


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    for name in ("in/a.jsonl", "in/year=2025/b.jsonl", "real/c.jsonl", "real/inner/d.jsonl", "_real/e.jsonl"):
        touch(tmp_path / name)
    for name, target in {
        "in/year=2026": "real",
        "in/year=2027": "_real",
        "in/_staging": "real",
        "in/latest": "in/year=2025",
        "in/loop": "in",
        "in/up": "",
        "real/inner/loop": "real",
        "real/inner/back": "in",
    }.items():
        (tmp_path / name).symlink_to(tmp_path / target)
    found = find_sources([str(tmp_path / "in")], tmp_path / "out")
    assert names(tmp_path / "in", found) == [
        "a.jsonl",
        "year=2025/b.jsonl",
        "year=2026/c.jsonl",
        "year=2026/inner/d.jsonl",
        "year=2027/e.jsonl",
    ]
    assert [dict(source.partitions) for source in found][2] == {"year": "2026"}
    (tmp_path / "in/year=2028").symlink_to(tmp_path / "real")
    assert find_sources([str(tmp_path / "in")], tmp_path / "out") == found
    (tmp_path / "in/year=2020").symlink_to(tmp_path / "real/inner")
    again = find_sources([str(tmp_path / "in")], tmp_path / "out")
    assert names(tmp_path / "in", again)[1:] == [
        "year=2020/d.jsonl",
        "year=2025/b.jsonl",
        "year=2026/c.jsonl",
        "year=2027/e.jsonl",
    ]


def test_a_link_to_nothing_that_is_not_data_is_ignored(tmp_path: Path) -> None:
    touch(tmp_path / "in/a.jsonl")
    (tmp_path / "in/NOTES.txt").symlink_to(tmp_path / "missing")
    (found,) = find_sources([str(tmp_path / "in")], tmp_path / "out")
    assert found.format == "jsonl"
    (tmp_path / "in/price=1.5").symlink_to(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"price=1.5: leads to a file or folder that does not exist"):
        find_sources([str(tmp_path / "in")], tmp_path / "out")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "in/a.jsonl")
    locked = tmp_path / "in/locked"
    touch(locked / "b.jsonl")
    scandir, listdir = os.scandir, os.listdir

    def refusing(read: Any) -> Any:
        def call(path: Any) -> Any:
            if Path(path) == locked:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return read(path)

        return call

    monkeypatch.setattr(os, "scandir", refusing(scandir))
    monkeypatch.setattr(os, "listdir", refusing(listdir))
    with pytest.raises(UsageError, match="in/locked: cannot be read: Permission denied"):
        find_sources([str(tmp_path / "in")], tmp_path / "out")


def test_a_format_can_be_given_for_unknown_extensions(tmp_path: Path) -> None:
    touch(tmp_path / "a.log")
    (found,) = find_sources([str(tmp_path / "a.log")], tmp_path / "out", "jsonl")
    assert found.format == "jsonl"


def test_a_url_of_pyarrow_is_read(tmp_path: Path) -> None:
    for name in ("_in/day=1/a.jsonl", "_in/day=1/.a.jsonl", "_in/_temporary/0/a.jsonl", "_in/_a.jsonl"):
        touch(tmp_path / name, b"x")
    (file,) = find_sources([f"file://{tmp_path}/_in/day=1/a.jsonl"], tmp_path / "out")
    assert (file.format, file.size) == ("jsonl", 1)
    (inner,) = find_sources([f"file://{tmp_path}/_in"], tmp_path / "out")
    assert inner.name == f"file://{tmp_path}/_in/day=1/a.jsonl"
    assert dict(inner.partitions) == {"day": "1"}


def test_a_url_of_fsspec_is_read(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    with memory.open("/bulk-test/a.jsonl.gz", "wb") as file:
        file.write(gzip.compress(b'{"text": "w1"}\n'))
    (found,) = find_sources(["memory://bulk-test/a.jsonl.gz"], tmp_path / "out")
    assert (found.format, found.compression) == ("jsonl", "gzip")
    with found.filesystem.open_input_stream(found.path, compression="gzip") as stream:
        assert stream.read() == b'{"text": "w1"}\n'


def test_the_digest_of_a_local_file_is_that_of_its_content(tmp_path: Path) -> None:
    import hashlib

    touch(tmp_path / "a.csv", b"text\nw1\n")
    (found,) = find_sources([str(tmp_path / "a.csv")], tmp_path / "out")
    assert found.sha256() == hashlib.sha256(b"text\nw1\n").hexdigest()


def test_standard_input_is_json_lines_unless_said(tmp_path: Path) -> None:
    (found,) = find_sources(["-"], tmp_path / "out")
    assert (found.is_stdin, found.format) == (True, "jsonl")
    with pytest.raises(UsageError, match="standard input cannot be parquet"):
        find_sources(["-"], tmp_path / "out", "parquet")

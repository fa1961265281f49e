from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from polyhead_bulk.files import AtomicFile, remove_abandoned, write_file


def test_a_file_appears_whole_when_it_is_committed(tmp_path: Path) -> None:
    file = AtomicFile(tmp_path / "part")
    file.write(b"one")
    file.write(b"two")
    assert not (tmp_path / "part").exists()
    file.commit()
    file.discard()
    assert (tmp_path / "part").read_bytes() == b"onetwo"
    assert (file.size, file.sha256) == (6, hashlib.sha256(b"onetwo").hexdigest())
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_a_discarded_file_leaves_nothing_and_keeps_the_previous_one(tmp_path: Path) -> None:
    write_file(tmp_path / "part", b"old")
    file = AtomicFile(tmp_path / "part")
    file.write(b"new")
    file.discard()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


_WRITER = """
import sys
from pathlib import Path
from polyhead_bulk.files import AtomicFile
file = AtomicFile(Path(sys.argv[1]))
file.write(b"half")
print("ready", flush=True)
sys.stdin.read()
"""


def test_the_file_of_a_killed_writer_is_removed_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / f"part-0-{name}.parquet")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in (0, 1)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        writers[0].kill()
        writers[0].wait()
        assert len(list(tmp_path.iterdir())) == 2
        remove_abandoned(tmp_path)
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".part-0-1.parquet.tmp-")
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        AtomicFile(tmp_path / "missing" / "part")


def test_files_of_others_are_not_abandoned(tmp_path: Path) -> None:
    (tmp_path / ".draft.tmp-notes").touch()
    (tmp_path / ".part-0-1.parquet.tmp-00ff").touch()
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".draft.tmp-notes"]


def test_a_file_that_is_removed_before_it_is_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removals = fcntl.flock, [tmp_path]

    def remove_first(*arguments: Any) -> None:
        for _ in range(len(removals)):
            remove_abandoned(removals.pop())
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    write_file(tmp_path / "part-0-1.parquet", b"one")
    assert removals == []
    assert (tmp_path / "part-0-1.parquet").read_bytes() == b"one"

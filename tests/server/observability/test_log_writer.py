"""The thread that writes log lines: its callers never wait, and no line is lost in silence."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from polyhead_server.observability.log_writer import LineWriter

pytestmark = pytest.mark.timeout(30)

LINE = "x" * 1023


def notice(lines: int) -> str:
    return f"dropped {lines}"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)


def read_until(descriptor: int, end: bytes) -> bytes:
    """Reads until the last line begins with ``end``."""
    data = b""
    while not (data.endswith(b"\n") and data.split(b"\n")[-2].startswith(end)):
        data += os.read(descriptor, 65536)
    return data


def test_lines_are_written_in_order(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], notice)
    for number in range(1000):
        writer.write(str(number))
    assert writer.flush(10)
    assert read_until(pipe[0], b"999").split() == [b"%d" % number for number in range(1000)]


def test_caller_does_not_wait_for_a_pipe_that_nobody_reads(pipe: tuple[int, int]) -> None:
    """A blocking write would hang here: the pipe holds 64 kB, and 2 MB are written."""
    writer = LineWriter(pipe[1], notice, max_waiting_bytes=256 * 1024)
    for _ in range(2000):
        writer.write(LINE)
    assert not writer.flush(0.05)
    assert writer.dropped >= 2000 - 256 - 64
    data = read_until(pipe[0], b"dropped")
    kept = data.count(b"\n") - 1
    assert data.splitlines()[-1] == b"dropped %d" % writer.dropped
    assert kept + writer.dropped == 2000
    writer.write("flows again")
    assert read_until(pipe[0], b"flows") == b"flows again\n"


def test_dropped_lines_are_reported_once_each_time(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], notice, max_waiting_bytes=100_000)
    reported = 0
    for _ in range(2):
        for _ in range(500):
            writer.write(LINE)
        reported += int(read_until(pipe[0], b"dropped").split()[-1])
    assert reported == writer.dropped


def test_closed_reader_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    writer = LineWriter(write, notice)
    writer.write("nobody gets this")
    assert writer.flush(10)
    assert writer.dropped == 1


def test_non_blocking_descriptor_gets_every_line(pipe: tuple[int, int]) -> None:
    """Another process may have made a shared terminal non-blocking."""
    os.set_blocking(pipe[1], False)
    writer = LineWriter(pipe[1], notice)
    for _ in range(200):
        writer.write(LINE)
    writer.write("last")
    assert read_until(pipe[0], b"last").count(b"\n") == 201


def test_lone_surrogate_is_written(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], notice)
    writer.write("\ud800")
    assert read_until(pipe[0], b"\\") == b"\\ud800\n"


def test_many_threads_write_whole_lines(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], notice)

    def write(name: str) -> None:
        for _ in range(100):
            writer.write(name * 50)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.write("end")
    lines = read_until(pipe[0], b"end").split()
    assert len(lines) == 401
    assert all(len(set(line)) == 1 for line in lines[:-1])

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError, EncodeError
from polyhead_server.memory import OutOfMemoryFilter, give_back


class Left(BaseException):
    """The process has ended."""


@pytest.fixture(autouse=True)
def _no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)


def told(error: Exception | None) -> bool:
    """Whether the process goes on after its log was told of an error."""
    exc_info = (type(error), error, None) if error else None
    return bool(
        OutOfMemoryFilter().filter(logging.LogRecord("grpc", logging.ERROR, "", 0, "a call failed", None, exc_info))
    )


@pytest.mark.parametrize(
    "error", [MemoryError(), EncodeError("Failed to serialize proto"), DecodeError("Error parsing: Arena alloc failed")]
)
def test_process_leaves_where_there_is_no_memory(error: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Left):
        told(error)
    assert capfd.readouterr().err == "polyhead-serve: no memory is left; the process ends, to be started again\n"


@pytest.mark.parametrize("error", [None, RuntimeError("broken"), DecodeError("Error parsing message")])
def test_process_goes_on_after_any_other_error(error: Exception | None) -> None:
    assert told(error)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such function")
def test_what_was_freed_goes_back_to_the_system() -> None:
    blocks = [bytes(1000) for _ in range(100_000)]
    # While the last one stays, the heap does not shrink by itself.
    last = blocks[-1]
    del blocks
    held = resident_bytes()
    give_back()
    assert resident_bytes() < held - 80e6
    assert last

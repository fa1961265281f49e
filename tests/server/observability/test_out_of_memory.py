from __future__ import annotations

import logging
import os

import pytest
from google.protobuf.message import DecodeError, EncodeError
from polyhead_server.memory import OutOfMemoryFilter


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

"""The end of a process that has run out of memory."""

from __future__ import annotations

import os

import pytest
from google.protobuf.message import DecodeError, EncodeError
from polyhead_server.out_of_memory import exit_if_out_of_memory


class Exited(BaseException):
    """The process has exited."""


@pytest.fixture(autouse=True)
def _no_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr(os, "_exit", leave)


@pytest.mark.parametrize(
    "error", [MemoryError(), EncodeError("Failed to serialize proto"), DecodeError("Error parsing: Arena alloc failed")]
)
def test_process_exits_with_code_1_and_one_line(error: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exited) as exited:
        exit_if_out_of_memory(error)
    assert exited.value.args == (1,)
    assert capfd.readouterr().err == (
        "polyhead-serve: out of memory; exiting so that the supervisor restarts the process\n"
    )


@pytest.mark.parametrize("error", [None, RuntimeError("broken"), DecodeError("Error parsing message")])
def test_process_continues_after_any_other_error(error: Exception | None) -> None:
    exit_if_out_of_memory(error)

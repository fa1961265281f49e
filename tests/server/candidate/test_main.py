"""The candidate's process in a shadow: what ends it."""

from __future__ import annotations

import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from polyhead_server.candidate import main
from polyhead_server.candidate.samples import Sample, Totals, encode
from polyhead_server.candidate.shadow import ShadowWork

pytestmark = pytest.mark.timeout(60)


class Ended(BaseException):
    """The process has ended."""


class Listener(socket.socket):
    """Keeps the connection that it has accepted."""

    def accept(self) -> tuple[socket.socket, Any]:
        self.accepted, address = super().accept()
        return self.accepted, address


class FaultyWork:
    """Fails where the comparison would begin."""

    def add(self, samples: Any) -> None:
        raise RuntimeError(f"a defect with {len(samples)} texts")


def test_unexpected_error_ends_the_process_instead_of_the_comparison_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    packet = encode(Sample(b"d" * 32, "w1", "", 1, 0, 0, 1, b""), Totals(1, 1, 1, 0))
    with (
        Listener(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sender,
    ):
        listener.bind(str(tmp_path / "socket"))
        listener.listen(1)
        sender.connect(str(tmp_path / "socket"))
        sender.send(packet)
        with pytest.raises(Ended):
            main._compare(listener, cast(ShadowWork, FaultyWork()), threading.Lock(), False)
        listener.accepted.close()
    assert codes == [1]
    assert "a defect with 1 texts" in caplog.text

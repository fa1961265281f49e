from __future__ import annotations

from pathlib import Path

from polyhead_server.settings import Settings
from polyhead_server.workers.ipc import Start, line


def test_worker_reads_what_the_supervisor_wrote() -> None:
    settings = Settings(bundle=Path("a bundle"), threads=3, max_padding=0.5)
    told = Start(settings, [1, 2], {"embedding_space": "e", "heads": [["topic", "softmax", ["a", "b"]]]}, drained=True)
    assert Start.decode(told.encode()) == told


def test_line_has_one_end_whatever_it_says() -> None:
    assert line({"message": "two\nlines"}).count(b"\n") == 1

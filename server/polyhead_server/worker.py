"""One of several server processes; the supervisor in ``workers`` starts it: ``python -m polyhead_server.worker``."""

from __future__ import annotations

import asyncio
import os
import sys

from .cli import run
from .settings import Settings
from .workers import decode


def main() -> None:
    """Serves on its part of the cores, until a signal or the end of the supervisor."""
    settings, cores = decode(sys.stdin.buffer.readline())
    # Before any library counts the cores.
    os.sched_setaffinity(0, cores)
    run(settings, _serve)


async def _serve(settings: Settings) -> None:
    from .lifecycle import serve

    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def orphaned() -> None:
        loop.remove_reader(sys.stdin)
        stop.set()

    # Nothing more is sent: when there is something to read, it is the end of the pipe, and of the supervisor.
    loop.add_reader(sys.stdin, orphaned)
    # What a library prints is not for the supervisor, which takes any line for the announcement.
    announcement = os.dup(1)
    os.dup2(2, 1)
    await serve(settings, stop, lambda: _announce(announcement))


def _announce(pipe: int) -> None:
    os.write(pipe, b"serving\n")


if __name__ == "__main__":
    main()

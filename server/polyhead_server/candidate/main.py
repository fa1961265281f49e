"""Entry point of the candidate's process in a shadow; ``CandidateProcess`` starts it.

::

    standard input   the configuration, then one line per request for a report; its end ends the process
    standard output  the description of the loaded candidate or why it cannot be one, then one line per report
    socket           packets of the serving processes
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import selectors
import shutil
import socket
import sys
import threading
from typing import Any

from polyhead_bundle import MANIFEST_NAME, BundleError, codec

from polyhead_server.errors import StartupError
from polyhead_server.observability.logging import configure
from polyhead_server.out_of_memory import exit_if_out_of_memory

from .bundle import load_candidate
from .child_pipes import open_pipes, write
from .description import Description, describe
from .idle import QuotaWatch, lower_priority, run_only_when_idle
from .parameters import ShadowConfig
from .samples import MAX_PACKET_BYTES, Sample, SampleError, Totals, decode
from .shadow import MAX_BATCH_ITEMS, ShadowWork

# Not __name__, which is __main__ here.
logger = logging.getLogger("polyhead_server.candidate.main")

_BACKLOG = 64
# Seconds between two looks at whether connections have come.
_POLL_S = 0.5


def main() -> None:
    """Compares until the standard input ends."""
    lines, output, config = open_pipes(ShadowConfig)
    if config.only_when_idle:
        lower_priority()
    configure(config.settings.log_level, config.settings.log_format)
    try:
        work, description = _prepare(config)
    except StartupError as error:
        write(output, Description(str(error)))
        sys.exit(1)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    listener.bind(str(config.socket))
    listener.listen(_BACKLOG)
    write(output, description)
    lock = threading.Lock()
    threading.Thread(
        target=_compare, args=(listener, work, lock, config.only_when_idle), name="shadow", daemon=True
    ).start()
    with contextlib.suppress(BrokenPipeError):
        for _ in lines:
            with lock:
                report = work.report()
            write(output, report)
    # The server may have been killed, and cannot remove it.
    shutil.rmtree(config.socket.parent, ignore_errors=True)
    # The thread may be computing, which a normal end would wait for.
    os._exit(0)


def _prepare(config: ShadowConfig) -> tuple[ShadowWork, Description]:
    """Loads the candidate and reads the manifest of the served model.

    Raises:
        StartupError: One of the bundles cannot be used.
    """
    # One text at a time, on one core.
    settings = dataclasses.replace(config.settings, threads=1)
    model = load_candidate(settings, config.candidate)
    try:
        served, digest, _ = codec.parse(config.served.resolve() / MANIFEST_NAME)
    except BundleError as error:
        raise StartupError(f"the bundle of the served model cannot be read again: {error}") from error
    work = ShadowWork(model, served, digest, config.keep_texts)
    return work, describe(model, f"{served.name}-{digest[:12]}")


def _compare(listener: socket.socket, work: ShadowWork, lock: threading.Lock, only_when_idle: bool) -> None:
    """Thread boundary: compares what comes, for ever. An unexpected error ends the process; its server reports that."""
    try:
        _receive(listener, work, lock, only_when_idle)
    except BaseException as error:
        exit_if_out_of_memory(error)
        logger.exception("the comparison ends")
        logging.shutdown()
        os._exit(1)


def _receive(listener: socket.socket, work: ShadowWork, lock: threading.Lock, only_when_idle: bool) -> None:
    if only_when_idle:
        run_only_when_idle()
    quota = QuotaWatch()
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            samples: list[tuple[Sample, Totals]] = []
            for key, _ in selector.select(_POLL_S):
                connection: Any = key.fileobj
                if connection is listener:
                    accepted, _ = listener.accept()
                    accepted.setblocking(False)
                    selector.register(accepted, selectors.EVENT_READ)
                elif not _read(connection, samples):
                    selector.unregister(connection)
                    connection.close()
            if samples:
                if only_when_idle:
                    quota.wait()
                with lock:
                    work.add(samples)


def _read(connection: socket.socket, samples: list[tuple[Sample, Totals]]) -> bool:
    """Reads some packets of a connection; returns whether it goes on."""
    for _ in range(MAX_BATCH_ITEMS):
        try:
            packet = connection.recv(MAX_PACKET_BYTES)
            if not packet:
                return False
            samples.append(decode(packet))
        except BlockingIOError:
            return True
        except (OSError, SampleError):
            return False
    return True


if __name__ == "__main__":
    main()

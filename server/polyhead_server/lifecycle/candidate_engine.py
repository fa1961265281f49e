"""Entry point of the candidate's engine in a canary; ``CandidateProcess`` starts it.

It is the engine process of ``--fronts`` with another bundle: the serving processes tokenize for it and encode its
answers. It reads the configuration from standard input, writes the description of the candidate or why it cannot be
one, and ends with its input.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from typing import BinaryIO, cast

from polyhead_server.candidate.bundle import settings_for
from polyhead_server.candidate.child_pipes import open_pipes, write
from polyhead_server.candidate.description import Description, describe
from polyhead_server.candidate.parameters import EngineConfig, EngineStart
from polyhead_server.errors import StartupError
from polyhead_server.process_reports import ModelIdentity

from .engine_process import EngineOperations, serve_engine
from .entry import ServerFailedError, run
from .operations import ProcessOperations
from .server import WorkerRole


def main() -> None:
    """Computes until the standard input ends."""
    lines, output, config = open_pipes(EngineConfig)
    run(config.settings, lambda _: _serve(config, lines, output))


async def _serve(config: EngineConfig, lines: BinaryIO, output: BinaryIO) -> int:
    stop = asyncio.Event()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), lines)
    reading = asyncio.create_task(reader.read())
    # The pipe ends when the server does.
    reading.add_done_callback(lambda _: stop.set())

    def on_serving(identity: ModelIdentity, operations: ProcessOperations) -> None:
        model = cast(EngineOperations, operations).model
        write(output, EngineStart(describe(model), identity))

    # Its traffic is not compared with its validation texts: nobody could ask for the report.
    settings = dataclasses.replace(settings_for(config.settings, config.candidate), drift_window_s=0.0)
    role = WorkerRole(None, drained=False, on_serving=on_serving, engine_socket=config.socket)
    try:
        return await serve_engine(settings, stop, role)
    except (StartupError, ServerFailedError) as error:
        write(output, EngineStart(Description(str(error))))
        raise
    finally:
        if reading.done():
            # The server may have been killed, and cannot remove it.
            shutil.rmtree(config.socket.parent, ignore_errors=True)


if __name__ == "__main__":
    main()

"""Starts the process of a candidate, and decides whether what it has loaded may run beside the served model."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from polyhead_server.addresses import require_short_path
from polyhead_server.candidate.description import Description
from polyhead_server.candidate.parameters import CandidateBundle, EngineConfig, EngineStart, ShadowConfig
from polyhead_server.candidate.process import CandidateProcess
from polyhead_server.errors import CandidateError, StartupError
from polyhead_server.process_reports import ModelIdentity

from .compatibility import incompatibility

logger = logging.getLogger(__name__)

R = TypeVar("R")

SHADOW_MODULE = "polyhead_server.candidate.main"
ENGINE_MODULE = "polyhead_server.lifecycle.candidate_engine"


@contextlib.contextmanager
def socket_folder() -> Iterator[tuple[Path, Path]]:
    """Yields a folder that no other user may enter, and the path of a socket in it; removes it if the start fails.

    Raises:
        CandidateError: The path is too long for a socket.
    """
    folder = Path(tempfile.mkdtemp(prefix="polyhead-candidate-"))
    try:
        socket = folder / "socket"
        try:
            require_short_path(socket)
        except StartupError as error:
            raise refused(str(error)) from error
        yield folder, socket
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


async def start_process(config: ShadowConfig | EngineConfig, kind: type[R]) -> tuple[CandidateProcess, R]:
    """Starts a process and waits until it has loaded the candidate, or not.

    Args:
        config: What it is to do.
        kind: Class of its report.

    Returns:
        The process and its report.

    Raises:
        CandidateError: It cannot be started, ends, or does not report within the server's ``start_timeout_s``.
    """
    module = SHADOW_MODULE if isinstance(config, ShadowConfig) else ENGINE_MODULE
    logger.info("loading a candidate in a process of its own (%s)", module)
    process = await CandidateProcess.start(module, config)
    try:
        return process, await process.receive(kind, config.settings.start_timeout_s)
    except BaseException:
        process.kill()
        raise


def check_shadow(description: Description, served_model_ids: set[str]) -> None:
    """Checks that a candidate was loaded, to be compared with the served model.

    Raises:
        CandidateError: It was not.
    """
    if description.error:
        raise refused(description.error)
    if served_model_ids != {description.served_model_id}:
        raise refused("the bundle of the served model was replaced on disk; reload it, then begin again")


def check_engine(start: EngineStart, wanted: CandidateBundle, serving: ModelIdentity | None, *, force: bool) -> None:
    """Checks that the engine of a candidate may answer in place of the served model.

    Args:
        start: Report of the engine.
        wanted: Bundle that it was to load.
        serving: Identity of the served model; None if none serves yet.
        force: Accept a candidate that is incompatible with it, see ``compatibility``.

    Raises:
        CandidateError: It may not.
    """
    if start.description.error or start.identity is None:
        raise refused(start.description.error)
    if wanted.digest not in {"", start.description.digest}:
        raise refused("its bundle has changed; discard it and begin again")
    if serving and not force and (reason := incompatibility(serving, start.identity)):
        raise refused(f"{reason}. Force the canary, or serve it from another server")


def refused(reason: str) -> CandidateError:
    """Logs why a candidate is refused, and returns the error."""
    logger.error("candidate refused: %s", reason)
    return CandidateError(reason)

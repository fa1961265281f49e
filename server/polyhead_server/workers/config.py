"""Configuration of each worker: the settings of the server, and its share of the cores."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from polyhead_server.addresses import require_short_path
from polyhead_server.errors import StartupError
from polyhead_server.settings import Settings

from .ipc import Role, WorkerConfig


def partition_cores(cores: Sequence[int], workers: int) -> list[tuple[int, ...]]:
    """Divides the cores into one contiguous share per worker; the sizes differ by at most one."""
    share, remainder = divmod(len(cores), workers)
    bounds = [0]
    for number in range(workers):
        bounds.append(bounds[-1] + share + (number < remainder))
    return [tuple(cores[begin:end]) for begin, end in itertools.pairwise(bounds)]


def front_configs(settings: Settings, engine_socket: str) -> list[WorkerConfig]:
    """Returns the configuration of the engine process, then that of each front.

    Args:
        settings: Settings of the server.
        engine_socket: Socket of the engine process.

    Raises:
        StartupError: Its path is too long.
    """
    require_short_path(Path(engine_socket))
    settings = _without_supervision(settings)
    roles = [Role.ENGINE, *[Role.FRONT] * settings.fronts]
    return [WorkerConfig(settings, role=role, engine_socket=engine_socket) for role in roles]


def worker_configs(settings: Settings, cores: Sequence[int], usable: int) -> list[WorkerConfig]:
    """Returns the configuration of each worker.

    Args:
        settings: Settings of the server.
        cores: The cores on which this process may run.
        usable: The number of cores that its cgroup's CPU quota amounts to. If this is less, workers are not pinned: the
            quota is time on any of the cores, and other processes that pin by the same count would crowd on the first.

    Raises:
        StartupError: There are fewer cores than workers.
    """
    settings = _without_supervision(settings)
    if settings.workers > usable:
        raise StartupError(f"--workers {settings.workers} is more than the {usable} cores that this process may use")
    if usable == len(cores):
        return [WorkerConfig(settings, share) for share in partition_cores(cores, settings.workers)]
    settings = dataclasses.replace(settings, cores=usable // settings.workers)
    return [WorkerConfig(settings) for _ in range(settings.workers)]


def _without_supervision(settings: Settings) -> Settings:
    # Reloads, scrapes and the admin service are the supervisor's.
    return dataclasses.replace(settings, reload_interval_s=0.0, metrics_listen="", admin_listen="")

"""Metrics of several workers: prometheus_client's multiprocess mode, plus the counts of workers that have ended.

Each worker writes its counts to memory-mapped files in a shared folder, and a scrape adds up all files. The library
keeps the files of ended workers forever, so scrapes would slow down with every replaced worker. ``merge_dead_worker``
adds an ended worker's counts to one pair of files instead. prometheus_client has no public API for these files:
everything that depends on its private ``mmap_dict`` stands in this module, and tests/server/observability checks it
against real worker processes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import multiprocess
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict

logger = logging.getLogger(__name__)


class WorkerMetrics:
    """Collects the metrics that several workers write to a folder; register it as a collector of a registry."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._collector = multiprocess.MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]
        # Guards the files: a scrape, in its own thread, counts an ended worker either by its own files or by the
        # merged ones, never by both.
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Returns the sums of all workers."""
        with self._lock:
            return list(self._collector.collect())  # type: ignore[no-untyped-call]

    def merge_dead_worker(self, pid: int) -> None:
        """Adds the counts of a worker that has ended to those of its predecessors, and removes its files."""
        with self._lock:
            for kind in ("counter", "histogram"):
                file = self._folder / f"{kind}_{pid}.db"
                try:
                    _add_values(file, self._folder / f"{kind}_dead.db")
                except Exception:
                    # For example a full disk, or a file that the worker was creating when it was killed. The file is
                    # removed all the same: every later scrape would fail on it.
                    logger.exception("the metrics of process %d are lost", pid)
                file.unlink(missing_ok=True)
            multiprocess.mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]


def _add_values(source: Path, target: Path) -> None:
    if not source.exists():
        return
    values = list(MmapedDict.read_all_values_from_file(str(source)))  # type: ignore[no-untyped-call]
    total = MmapedDict(str(target))  # type: ignore[no-untyped-call]
    try:
        for key, value, timestamp, _ in values:
            total.write_value(key, total.read_value(key)[0] + value, timestamp)  # type: ignore[no-untyped-call]
    finally:
        total.close()  # type: ignore[no-untyped-call]

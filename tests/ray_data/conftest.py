"""A Ray cluster of three nodes on this machine, a table, and ``polyhead bulk`` in a process of its own."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from bench.harness.servers import BIN

# `make test-ray` builds it; the environment of these tests has no PyTorch to do so.
BUNDLE = Path(os.environ.get("POLYHEAD_TEST_BUNDLE", "build/demo/bundle")).absolute()
ROWS, PART_ROWS = 2500, 125
_WORDS = ["parcel", "order", "refund", "late", "love", "hate", "app", "great", "screen", "phone", "slow", "reply"]
_WAIT_S = 120.0


class Bulk:
    """``polyhead bulk`` on a table, in a process."""

    def __init__(self, table: Path, output: Path, *options: str, bundle: Path = BUNDLE) -> None:
        self.output = output
        columns = ("--id-column", "id", "--part-rows", str(PART_ROWS))
        command = [BIN / "polyhead", "bulk", table, output, "--bundle", bundle, *columns, *options]
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def wait_for_parts(self, number: int) -> None:
        """Waits until so many parts are complete, while the job is running."""
        end = time.monotonic() + _WAIT_S
        while len(list(self.output.glob("_parts/*.json"))) < number:
            assert self._process.poll() is None, self.result()
            assert time.monotonic() < end, "no parts"
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def result(self) -> tuple[int, str]:
        """Waits for the end; returns exit code and standard error."""
        _, stderr = self._process.communicate(timeout=_WAIT_S)
        return self._process.returncode, stderr

    def answers(self) -> pa.Table:
        return pa.dataset.dataset(self.output, format="parquet").to_table()


class Nodes:
    """The nodes of a Ray cluster."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self._workers: list[Any] = []
        self.complete()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def complete(self) -> None:
        """Adds nodes until there are a head and two others, of one core each."""
        while len(self._workers) < 2:
            self._workers.append(self._cluster.add_node(num_cpus=1))

    def remove_one(self) -> None:
        """Kills a node, as a machine that loses its power."""
        self._cluster.remove_node(self._workers.pop(), allow_graceful=False)

    def actors(self) -> list[int]:
        """Returns the process ids of the actors of the job that is running, of this cluster alone."""
        raylets = {process.pid for node in self._cluster.list_all_nodes() for process in _raylets(node)}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if b"PartMaker" in (folder / "cmdline").read_bytes():
                    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                    found += [int(folder.name)] if parent in raylets else []
            except OSError:
                continue
        return found

    def shutdown(self) -> None:
        self._cluster.shutdown()


def _raylets(node: Any) -> list[Any]:
    return [one.process for one in node.all_processes.get("raylet", [])]


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    cluster = Nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of row groups that are larger than a part."""
    chosen = random.Random(0)
    texts: list[str | None] = [" ".join(chosen.choices(_WORDS, k=chosen.randrange(1, 50))) for _ in range(ROWS)]
    texts[7] = None
    path = tmp_path_factory.mktemp("in") / "reviews.parquet"
    pq.write_table(pa.table({"id": range(ROWS), "text": texts}), path, row_group_size=1250)
    return path


@pytest.fixture(scope="session")
def expected(table: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What the local engine writes."""
    local = Bulk(table, tmp_path_factory.mktemp("local") / "out")
    assert local.result()[0] == 0
    return local.answers()


@pytest.fixture
def start(table: Path, nodes: Nodes, tmp_path: Path) -> Callable[..., Bulk]:
    """Starts the command on the cluster: ``start(*options)``."""
    return lambda *options, **more: Bulk(
        table, tmp_path / "out", "--engine", "ray", "--ray-address", nodes.address, *options, **more
    )

"""A job on a Ray cluster writes what the local engine writes, also when nodes, actors and the command itself die.

`make test-ray` runs it in an environment of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from .conftest import BUNDLE, PART_ROWS, ROWS, Bulk, Nodes

Start = Callable[..., Bulk]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; run `make test-ray`"),
    pytest.mark.skipif(not (BUNDLE / "bundle.json").exists(), reason="there is no bundle; run `make test-ray`"),
]
PARTS = ROWS // PART_ROWS
TOLERANCE = 1e-6


def require_equal(job: Bulk, expected: pa.Table) -> None:
    """Requires the rows of the local engine in their order, numbers to 1e-6, and no other file than their parts."""
    found = job.answers()
    assert found.schema.equals(expected.schema, check_metadata=True)
    assert found["id"].to_pylist() == list(range(ROWS))
    for field in expected.schema:
        one, other = found[field.name].combine_chunks(), expected[field.name].combine_chunks()
        if pa.types.is_fixed_size_list(field.type):
            assert one.is_null().equals(other.is_null())
            np.testing.assert_allclose(one.flatten(), other.flatten(), rtol=0, atol=TOLERANCE)
        else:
            assert one.equals(other), field.name
    names = sorted(path.name for path in job.output.iterdir())
    assert names == ["_manifest.json", "_parts", *(f"part-00000-{part:05d}.parquet" for part in range(PARTS))]
    assert sorted(path.suffix for path in (job.output / "_parts").iterdir()) == ["", *[".json"] * PARTS]


def test_cluster_writes_what_the_local_engine_writes(start: Start, nodes: Nodes, expected: pa.Table) -> None:
    job = start()
    job.wait_for_parts(4)
    assert len(nodes.actors()) == 3
    code, stderr = job.result()
    assert code == 0, stderr
    assert f"{ROWS:,} rows in {PARTS} parts, 1 of them without an answer" in stderr
    require_equal(job, expected)


def test_job_survives_a_killed_actor(start: Start, nodes: Nodes, expected: pa.Table, tmp_path: Path) -> None:
    moved = tmp_path / "bundle"
    shutil.copytree(BUNDLE, moved)
    job = start("--ray-send-bundle", bundle=moved)
    job.wait_for_parts(3)
    # The nodes have their copy: actors that start again do not read this one.
    shutil.rmtree(moved)
    killed = nodes.actors()[0]
    os.kill(killed, signal.SIGKILL)
    code, stderr = job.result()
    assert code == 0, stderr
    require_equal(job, expected)


def test_job_survives_a_node(start: Start, nodes: Nodes, expected: pa.Table) -> None:
    job = start()
    job.wait_for_parts(3)
    nodes.remove_one()
    try:
        code, stderr = job.result()
    finally:
        nodes.complete()
    assert code == 0, stderr
    require_equal(job, expected)


def test_interrupted_and_killed_command_continues(start: Start, expected: pa.Table) -> None:
    job = start()
    job.wait_for_parts(2)
    job.send(signal.SIGINT)
    code, stderr = job.result()
    assert code == 130, stderr
    assert "Continue with: polyhead bulk" in stderr
    # The parts that were in progress are complete, and nothing else is there.
    parts = len(list(job.output.glob("part-*.parquet")))
    assert 2 <= parts < PARTS
    assert len(job.answers()) == PART_ROWS * parts
    assert not list(job.output.glob(".*"))
    job = start()
    job.wait_for_parts(parts + 2)
    job.send(signal.SIGKILL)
    assert job.result()[0] == -signal.SIGKILL
    job = start()
    code, stderr = job.result()
    assert code == 0, stderr
    kept = int(stderr.rpartition(" kept from before")[0].split()[-2])
    assert parts + 2 <= kept < PARTS
    require_equal(job, expected)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--dimensions", "100000"), 2, "dimensions: 100000 is more than the model's"),
        (("--ray-address", "ray://127.0.0.1:1"), 2, "ray job submit"),
    ],
)
def test_what_cannot_run_is_refused(start: Start, options: tuple[str, ...], code: int, message: str) -> None:
    found, stderr = start(*options).result()
    assert found == code
    assert message in stderr.splitlines()[-1]

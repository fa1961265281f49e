"""The autoscaling policy, without Ray."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from polyhead_server.ray_serve import autoscaling
from polyhead_server.ray_serve.autoscaling import QUEUED_TOKENS, UTILIZATION, QueuedTokensPolicy


def desired(queued: list[float], busy: list[float], current: int | None = None) -> int:
    context = SimpleNamespace(
        aggregated_metrics={QUEUED_TOKENS: dict(enumerate(queued)), UTILIZATION: dict(enumerate(busy))},
        current_num_replicas=len(queued) if current is None else current,
        target_num_replicas=7,
    )
    return QueuedTokensPolicy(1000)(context)[0]


@pytest.mark.parametrize(
    ("queued", "busy", "replicas"),
    [
        ([0], [0], 1),
        ([1000], [1], 1),
        ([1001], [1], 2),
        ([3000, 1000], [1, 1], 4),
        # An empty queue and busy threads: the replicas keep up, and fewer would not.
        ([0, 0, 0], [0.6, 0.6, 0.6], 3),
        ([0, 0, 0], [0.4, 0.4, 0.4], 2),
        ([0, 0, 0], [0.1, 0.1, 0.1], 1),
        ([0], [1.0], 1),
    ],
)
def test_replicas_follow_the_queued_tokens_and_the_compute_in_use(
    queued: list[float], busy: list[float], replicas: int
) -> None:
    assert desired(queued, busy) == replicas


@pytest.mark.parametrize("metrics", [None, {}, {QUEUED_TOKENS: {}}])
def test_nothing_changes_before_a_replica_reports(metrics: Any) -> None:
    context = SimpleNamespace(aggregated_metrics=metrics, current_num_replicas=1, target_num_replicas=3)
    assert QueuedTokensPolicy(1000)(context) == (3, {})


def test_the_policy_requires_the_standard_library_alone() -> None:
    """Ray's controller runs a copy of the module."""
    assert autoscaling.__file__
    program = f"import runpy, sys; runpy.run_path({autoscaling.__file__!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", program], check=True, capture_output=True, text=True)
    assert not {"ray", "polyhead_server", "grpc", "numpy"} & {name.split(".")[0] for name in done.stdout.split()}

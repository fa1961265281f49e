"""The autoscaling policy: replicas by the tokens in their queues, and no fewer than the compute in use requires.

Ray's controller runs the policy, from a copy of this module that it gets with the deployment, so the module imports the
standard library alone. Ray Serve applies the limits on the number of replicas, and the delays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Names of what replicas report, see ``Replica.record_autoscaling_stats``.
QUEUED_TOKENS = "queued_tokens"
UTILIZATION = "utilization"
# Part of the compute threads that should be busy at most. An empty queue alone does not tell that a replica is not
# needed: below saturation every queue is empty.
_MAX_UTILIZATION = 0.7


class QueuedTokensPolicy:
    """Decides the number of replicas of a deployment."""

    def __init__(self, target_queued_tokens: float) -> None:
        """Creates the policy.

        Args:
            target_queued_tokens: Tokens in the queue for each replica above which replicas are added.
        """
        self._target = target_queued_tokens

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Returns the number of replicas, and the state for the next decision, of which there is none.

        Args:
            context: ``ray.serve.config.AutoscalingContext``.
        """
        metrics: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        queued = metrics.get(QUEUED_TOKENS, {})
        if not queued:
            # No replica has reported yet.
            return context.target_num_replicas, {}
        by_queue = math.ceil(sum(queued.values()) / self._target)
        by_compute = math.ceil(sum(metrics.get(UTILIZATION, {}).values()) / _MAX_UTILIZATION - 1e-9)
        if by_queue > context.current_num_replicas:
            return by_queue, {}
        # The compute in use keeps replicas and adds none: a single busy replica with an empty queue keeps up.
        return max(1, by_queue, min(by_compute, context.current_num_replicas)), {}

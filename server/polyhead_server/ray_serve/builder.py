"""The application builder that ``serve run`` and config files of Ray Serve name.

There is no ``from __future__ import annotations`` here: Ray Serve reads the type of the builder's argument, and takes
a string for no type.
"""

import math
import os

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig

from .arguments import Arguments
from .autoscaling import QueuedTokensPolicy
from .replica import Replica

# Seconds between two health checks of a replica, and until one has failed. A busy event loop answers late.
_HEALTH_CHECK_PERIOD_S, _HEALTH_CHECK_TIMEOUT_S = 5.0, 30.0
# Seconds over which the tokens in the queues are averaged; replicas report every 10 s.
_LOOK_BACK_PERIOD_S = 15.0
# A bundle that cannot be served on three attempts cannot be served on the twenty that are the default.
_MAX_START_ATTEMPTS = 3
# A replica imports numpy, which reads the variable, before it imports this package, which sets it here.
_THREADS_VARIABLE = "OPENBLAS_NUM_THREADS"
# Seconds after which a call that every replica refused should be tried again.
_RETRY_AFTER_S = 1.0


def application(arguments: Arguments) -> Application:
    """Builds the application.

    Args:
        arguments: Those of the command line, or ``args`` of the config file. ``deployments`` in the config file may
            override the options of the deployment ``polyhead``.
    """
    policy = AutoscalingPolicy(
        policy_function=f"{QueuedTokensPolicy.__module__}:{QueuedTokensPolicy.__name__}",
        policy_kwargs={"target_queued_tokens": arguments.target_queued_tokens},
    )
    deployment = serve.deployment(
        Replica,
        name="polyhead",
        ray_actor_options={
            "num_cpus": arguments.cpus_per_replica,
            "num_gpus": arguments.gpus_per_replica,
            "runtime_env": {"env_vars": {_THREADS_VARIABLE: os.environ[_THREADS_VARIABLE]}},
        },
        autoscaling_config=AutoscalingConfig(
            min_replicas=arguments.min_replicas,
            max_replicas=arguments.max_replicas,
            upscale_delay_s=arguments.upscale_delay_s,
            downscale_delay_s=arguments.downscale_delay_s,
            look_back_period_s=_LOOK_BACK_PERIOD_S,
            policy=policy,
        ),
        max_ongoing_requests=arguments.max_ongoing_requests,
        # Of each proxy: as much again, then it refuses.
        max_queued_requests=arguments.max_ongoing_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=_RETRY_AFTER_S),
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=_HEALTH_CHECK_TIMEOUT_S,
        # By then every stream has ended because of its age, and every call has been answered.
        graceful_shutdown_timeout_s=math.ceil(arguments.max_stream_age_s + arguments.drain_timeout_s),
        max_constructor_retry_count=_MAX_START_ATTEMPTS,
    )
    return deployment.bind(arguments)

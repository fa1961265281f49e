"""gRPC channel options, with the reason for each; the same for both clients."""

from __future__ import annotations

import json

from polyhead_client.core.message_limits import MAX_MESSAGE_BYTES

from .credentials import Tls
from .target import Target

SERVICE = "polyhead.v1.InferenceService"

# Round robin over several addresses, skipping those whose health service reports NOT_SERVING (draining, loading).
# No retryPolicy: gRPC would retry on this channel only, and not what a stream has already sent (see ``core.retry``).
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": SERVICE},
}

# gRPC reads proxies from the environment; one would carry local traffic (texts, API keys) to a network.
NO_PROXY: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]

_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Answers may be far larger than texts: 1,024 answers of a head with 500 labels are. The server limits their number.
    ("grpc.max_receive_message_length", -1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # A service config in a DNS record must not replace this one.
    ("grpc.service_config_disable_resolution", 1),
    # By default all channels of a process share one connection to an address, and so one of the workers behind it.
    ("grpc.use_local_subchannel_pool", 1),
    # The default starts at 1 s, which is longer than another worker needs to take over.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Detects a peer that vanished silently. Not more often: by default a gRPC server disconnects a client that pings an
    # idle connection more than once in 5 minutes. The timeout also applies to data that is not acknowledged.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


def options(target: Target, tls: Tls | None) -> list[tuple[str, int | str]]:
    """Returns the options for a channel to ``target``."""
    selected = list(_OPTIONS)
    if target.local:
        selected += NO_PROXY
    if tls and tls.server_name:
        selected.append(("grpc.ssl_target_name_override", tls.server_name))
    return selected

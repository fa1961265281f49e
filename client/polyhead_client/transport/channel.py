"""How a channel is set up, with the reason for each setting; the same for both clients."""

from __future__ import annotations

import json

from polyhead_client.core.message_limits import MAX_MESSAGE_BYTES

from .credentials import Tls, is_local

_SERVICE = "polyhead.v1.InferenceService"

# Of several addresses each gets its turn, but none whose health service says NOT_SERVING: it drains, or still loads.
# No retryPolicy: gRPC would try again on this channel alone, and not what a stream had sent (see ``retries``).
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": _SERVICE},
}

# A proxy, which gRPC finds in the environment, would carry to a network what is to stay here: texts, keys.
NO_PROXY: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]

_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Answers may be far larger than texts: 1,024 of a head with 500 labels are. The server bounds them by their number.
    ("grpc.max_receive_message_length", -1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # What DNS says beside the addresses must not replace the service config.
    ("grpc.service_config_disable_resolution", 1),
    # Otherwise all channels of a process share one connection to an address, and so one of the workers behind it.
    ("grpc.use_local_subchannel_pool", 1),
    # From 1 s on by default, which is longer than another worker needs to take over.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Finds a peer that vanished without a word. Not more often: by default a gRPC server hangs up on a client that
    # pings a quiet connection more than once in 5 minutes. The time-out also holds for data that is not acknowledged.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


def options(target: str, tls: Tls | None) -> list[tuple[str, int | str]]:
    """The options of a channel to ``target``."""
    chosen = list(_OPTIONS)
    if is_local(target):
        chosen += NO_PROXY
    if tls and tls.server_name:
        chosen.append(("grpc.ssl_target_name_override", tls.server_name))
    return chosen

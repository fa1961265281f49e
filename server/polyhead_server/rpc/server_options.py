"""gRPC channel arguments of the servers, with the reason for each."""

from __future__ import annotations

import resource

from polyhead_server.settings import Settings

Options = list[tuple[str, int]]

# Seconds in which a new connection must complete its TLS and HTTP/2 handshakes.
_HANDSHAKE_TIMEOUT_S = 20
# Calls that wait in gRPC until the event loop takes them, before gRPC itself cancels some without a reason. That is
# more than honest clients open at once, so that every rejection of theirs is the server's own; it still bounds the cost
# of a client that opens calls and resets them at once.
_MAX_PENDING_CALLS = 16_384
# File descriptors besides those of gRPC's and HTTP's connections: the model, logs, metrics and their clients.
_OTHER_DESCRIPTORS = 200
# Seconds after which gRPC cancels a call that still waits there. Far beyond any stall of the event loop.
_MAX_PENDING_S = 3600


def inference_options(settings: Settings, *, shares_port: bool) -> Options:
    """Returns the options of the server of the inference service.

    Args:
        settings: Settings of the server.
        shares_port: Whether other workers listen on the same port.
    """
    return [
        *common_options(settings),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Enabled for workers only. Otherwise a second server could bind the same port silently and take half the calls.
        ("grpc.so_reuseport", int(shares_port)),
        # Only the admin service shows channelz data.
        ("grpc.enable_channelz", int(bool(settings.admin_listen))),
        *_connection_age(settings),
    ]


def common_options(settings: Settings) -> Options:
    """Returns the options of every server."""
    return [
        # Without the probe, a stream whose client does not read costs 70 kB instead of 4.3 MB.
        ("grpc.http2.bdp_probe", 0),
        # Clients open further calls when earlier ones end. One connection cannot take the backlog from the others.
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        # By default gRPC counts calls against this limit until it has freed them, and refuses those that clients open
        # at the end of others.
        ("grpc.http.overload_protection", 0),
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        ("grpc.server_max_unrequested_time_in_server", _MAX_PENDING_S),
        ("grpc.server_handshake_timeout_ms", 1000 * _HANDSHAKE_TIMEOUT_S),
        # The server inflates messages itself, after it has authorized their calls; see ``compression``.
        ("grpc.per_message_decompression", 0),
        ("grpc.max_allowed_incoming_connections", _max_connections(settings)),
    ]


def _max_connections(settings: Settings) -> int:
    """Returns the limit on connections, which leaves file descriptors for everything else."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return settings.max_connections
    left = hard - _OTHER_DESCRIPTORS
    if settings.http_listen:
        left -= min(settings.http_max_connections, left // 2)
    return max(1, min(settings.max_connections, left))


def _connection_age(settings: Settings) -> Options:
    """GOAWAY at an age at which gRPC varies each connection by 10 %; calls in progress then have the grace period."""
    if not (age_s := settings.connection_age_s()):
        return []
    return [
        ("grpc.max_connection_age_ms", round(1000 * age_s)),
        ("grpc.max_connection_age_grace_ms", round(1000 * settings.max_connection_age_grace_s)),
    ]

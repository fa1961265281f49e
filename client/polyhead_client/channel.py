"""How a channel is set up, with the reason for each setting; the same for both clients."""

from __future__ import annotations

import json

from .flow import MAX_MESSAGE_BYTES

_SERVICE = "polyhead.v1.InferenceService"

# CANCELLED stands beside UNAVAILABLE: a server that stops gracefully answers it to calls that it has not looked at yet.
# Both mean that nothing was computed, and asking again asks for the same answer. Streams are not here: what was sent on
# them would have to be kept for sending it again.
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE, "method": "Analyze"}, {"service": _SERVICE, "method": "GetModelInfo"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}

OPTIONS: list[tuple[str, int | str]] = [
    # gRPC's own limit for what comes in is 4 MiB: 1,024 large embeddings are more.
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps(_RETRIES)),
    # Finds a peer that vanished without a word. Not more often: by default a gRPC server hangs up on a client that
    # pings a quiet connection more than once in 5 minutes. The time-out also holds for data that is not acknowledged.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]

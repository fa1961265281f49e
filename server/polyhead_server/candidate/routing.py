"""The key by which calls stay with one model during a canary.

The first of these that a call has: the metadata or header ``x-polyhead-routing-key``, the name of its API key, the
address of its peer without the port.
"""

from __future__ import annotations

from contextvars import ContextVar

HEADER = "x-polyhead-routing-key"
# Key of the current call; empty outside of one. Set in the task of the call and inherited by the tasks that it starts.
ROUTING_KEY: ContextVar[str] = ContextVar("polyhead_routing_key", default="")
# Schemes of gRPC's peers.
_SCHEMES = ("ipv4:", "ipv6:")


def routing_key(header: str, caller: str, peer: str) -> str:
    """Returns the key of a call.

    Args:
        header: Value of the header; empty without one.
        caller: Name of its API key; empty without one.
        peer: Address and port, as gRPC or HTTP reports them.
    """
    if header:
        return f"key:{header}"
    if caller:
        return f"caller:{caller}"
    for scheme in _SCHEMES:
        peer = peer.removeprefix(scheme)
    # That of a Unix socket is "unix:" on gRPC, and "unix" on HTTP.
    address = peer.rpartition(":")[0] or peer
    return f"peer:{address.strip('[]').replace('%5B', '').replace('%5D', '')}"

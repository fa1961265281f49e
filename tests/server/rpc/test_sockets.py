"""The kernel's counts of this process's connections."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest
from polyhead_server.rpc import sockets

from tests.support.polling import wait_until


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection: the client's and the server's."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
        with client, server:
            yield client, server


def peer(server: socket.socket) -> str:
    host, port, *_ = server.getpeername()
    return f"{host}:{port}"


def port(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def test_connections_to_other_ports_are_not_counted(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    assert set(sockets.transferred(port(server))) == {peer(server)}
    assert set(sockets.transferred(port(client))) == {peer(client)}


def test_connections_are_not_counted_in_part(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dup(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", dup)
    with pytest.raises(OSError, match="Too many open files"):
        sockets.transferred(port(pair[1]))


def test_received_bytes_of_each_connection_are_counted(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    client.sendall(b"x" * 1000)
    # Also while the process has not read them.
    wait_until(lambda: sockets.transferred(port(server))[peer(server)].received == 1000)
    server.sendall(b"y" * 300)
    wait_until(lambda: sockets.transferred(port(server))[peer(server)].sent >= 300)


def test_counting_leaves_no_descriptors_open(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not all descriptors of the process, which other threads open and close.
    made: list[socket.socket] = []
    duplicate = sockets._duplicate

    def recorded(descriptor: int) -> socket.socket:
        made.append(duplicate(descriptor))
        return made[-1]

    monkeypatch.setattr(sockets, "_duplicate", recorded)
    assert peer(pair[1]) in sockets.transferred(port(pair[1]))
    assert len(made) >= 2
    assert {one.fileno() for one in made} == {-1}
    assert all(one.fileno() >= 0 for one in pair)


def test_connection_of_a_peer_is_closed_and_no_other(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    sockets.close("192.0.2.1:1", port(server))
    sockets.close(peer(server), port(server) - 1)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    client.setblocking(True)
    sockets.close(peer(server), port(server))
    assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("of_grpc", "expected"),
    [
        ("ipv4:127.0.0.1:50051", "127.0.0.1:50051"),
        ("ipv6:%5B::1%5D:50051", "::1:50051"),
        ("ipv6:[::ffff:10.0.0.1]:7", "10.0.0.1:7"),
        ("ipv6:%5Bfe80::1%252%5D:7", "fe80::1:7"),
        ("unix:", "unix:"),
    ],
)
def test_peers_of_grpc_are_normalized(of_grpc: str, expected: str) -> None:
    assert sockets.normalized(of_grpc) == expected

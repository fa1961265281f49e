from __future__ import annotations

import contextlib
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from polyhead_server import addresses
from polyhead_server.errors import StartupError

HOST = "127.0.0.1"


@contextlib.contextmanager
def listener(*options: int, port: int = 0) -> Iterator[int]:
    """A process that listens; yields the port."""
    with socket.socket() as one:
        for option in options:
            one.setsockopt(socket.SOL_SOCKET, option, 1)
        one.bind((HOST, port))
        one.listen()
        yield one.getsockname()[1]


@pytest.mark.parametrize(
    ("host", "options"),
    [
        (HOST, ()),
        (HOST, (socket.SO_REUSEADDR,)),
        (HOST, (socket.SO_REUSEADDR, socket.SO_REUSEPORT)),
        ("localhost", (socket.SO_REUSEADDR, socket.SO_REUSEPORT)),
        ("0.0.0.0", (socket.SO_REUSEADDR, socket.SO_REUSEPORT)),  # noqa: S104 - refused
    ],
)
@pytest.mark.parametrize("claim", [addresses.exclusive, addresses.reserve])
def test_address_with_a_listener_is_refused(claim: object, options: tuple[int, ...], host: str) -> None:
    with (
        listener(*options) as port,
        pytest.raises(StartupError, match="another server"),
        claim(f"{host}:{port}"),  # type: ignore[operator]
    ):
        pass


def test_reserved_address_is_open_to_workers_only() -> None:
    with addresses.reserve(f"{HOST}:0") as address:
        port = int(address.split(":")[1])
        for options in ((), (socket.SO_REUSEADDR,)):
            with pytest.raises(OSError, match="in use"), listener(*options, port=port):
                pass
        with listener(socket.SO_REUSEADDR, socket.SO_REUSEPORT, port=port):
            # The reservation itself accepts no connection: each one reaches the worker.
            for _ in range(20):
                socket.create_connection((HOST, port), timeout=5).close()


def test_address_cannot_be_reserved_twice() -> None:
    with (
        addresses.reserve(f"{HOST}:0") as address,
        pytest.raises(StartupError, match="another server"),
        addresses.reserve(address),
    ):
        pass


@pytest.mark.parametrize("claim", [addresses.exclusive, addresses.reserve])
def test_connection_in_time_wait_is_ignored(claim: object) -> None:
    with time_wait() as port, claim(f"{HOST}:{port}"):  # type: ignore[operator]
        with listener(socket.SO_REUSEADDR, socket.SO_REUSEPORT, port=port):
            pass
        if claim is addresses.reserve:
            with pytest.raises(OSError, match="in use"), listener(socket.SO_REUSEADDR, port=port):
                pass


def test_connection_in_time_wait_blocks_a_bind_without_reuseaddr() -> None:
    """Control: without this, the test above could not fail."""
    with time_wait() as port, pytest.raises(OSError, match="in use"), listener(socket.SO_REUSEPORT, port=port):
        pass


@contextlib.contextmanager
def time_wait() -> Iterator[int]:
    """A port without a listener, and with a connection in TIME_WAIT."""
    with listener(socket.SO_REUSEADDR) as port:
        pass
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((HOST, port))
        server.listen()
        client = socket.create_connection((HOST, port), timeout=5)
        accepted, _ = server.accept()
        # The side that closes first keeps the connection in TIME_WAIT.
        accepted.close()
        assert client.recv(1) == b""
        client.close()
    yield port


def resolves_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    def getaddrinfo(_: str, port: int, **__: object) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for host in hosts:
            v6 = ":" in host
            where = (host, port, 0, 0) if v6 else (host, port)
            found.append((socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM, 6, "", where))
        return found

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_every_address_of_a_name_is_reserved_on_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves_to(monkeypatch, "127.0.0.1", "127.0.0.2")
    with addresses.reserve("name:0") as address:
        host, port = address.split(":")
        assert host == "name"
        for one in ("127.0.0.1", "127.0.0.2"):
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind((one, int(port)))


@pytest.mark.parametrize("claim", [addresses.exclusive, addresses.reserve])
def test_name_with_one_address_in_use_is_refused(claim: object, monkeypatch: pytest.MonkeyPatch) -> None:
    resolves_to(monkeypatch, "127.0.0.2", "127.0.0.1")
    with (
        listener() as port,
        pytest.raises(StartupError, match="another server"),
        claim(f"name:{port}"),  # type: ignore[operator]
    ):
        pass


def test_unavailable_address_of_a_name_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves_to(monkeypatch, "192.0.2.1", "127.0.0.1")
    with addresses.reserve("name:0") as address, pytest.raises(OSError, match="in use"), socket.socket() as other:
        other.bind((HOST, int(address.split(":")[1])))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="the machine has no IPv6")
@pytest.mark.parametrize("host", ["[::1]", "[::]"])
def test_ipv6_is_reserved(host: str) -> None:
    with addresses.reserve(f"{host}:0") as address:
        assert address.startswith(f"{host}:")
        with pytest.raises(StartupError, match="another server"), addresses.reserve(address):
            pass


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartupError, match="cannot listen"), addresses.reserve("192.0.2.1:50051"):
        pass


def test_unknown_name_is_refused() -> None:
    with pytest.raises(StartupError, match="no-such-name is not known"), addresses.reserve("no-such-name:50051"):
        pass


@pytest.mark.parametrize("address", ["50051", ":50051", "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:x"])
def test_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(StartupError, match="is not HOST:PORT"):
        addresses.split_address(address)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/polyhead.sock", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_address_is_local_if_no_other_machine_can_reach_it(address: str, local: bool) -> None:
    assert addresses.is_local(address) == local


# Unix sockets


@contextlib.contextmanager
def unix_listener(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        one.listen()
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
def test_stale_socket_is_removed(path: Path, form: str) -> None:
    with unix_listener(path):
        pass
    assert path.exists()
    with addresses.exclusive(form.format(path)) as address:
        assert address == f"unix:{path}"
        assert not path.exists()


def test_socket_with_a_listener_is_refused_and_kept(path: Path) -> None:
    with unix_listener(path):
        with pytest.raises(StartupError, match="another server"), addresses.exclusive(f"unix:{path}"):
            pass
        assert path.exists()


def test_file_that_is_not_a_socket_is_refused_and_kept(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(StartupError, match="not a socket"), addresses.exclusive(f"unix:{path}"):
        pass
    assert path.read_text() == "mine"


def test_link_to_a_socket_is_refused_and_kept(path: Path, tmp_path: Path) -> None:
    with unix_listener(tmp_path / "other"):
        path.symlink_to(tmp_path / "other")
        with pytest.raises(StartupError, match="not a socket"), addresses.exclusive(f"unix:{path}"):
            pass
    assert path.is_symlink()


def test_socket_is_private_and_removed_at_the_end(path: Path) -> None:
    with addresses.exclusive(f"unix:{path}"):
        with addresses.private_files(), unix_listener(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.exists()
    assert not path.exists()


def test_socket_of_another_server_is_not_removed_at_the_end(path: Path) -> None:
    with addresses.exclusive(f"unix:{path}"):
        other = unix_listener(path)
        other.__enter__()
    assert path.exists()
    other.__exit__(None, None, None)


@pytest.mark.parametrize("address", ["unix:", "unix:/", "unix:" + "a" * 200])
def test_invalid_path_is_refused(address: str) -> None:
    with pytest.raises(StartupError, match=r"names no file|longer"):
        addresses.unix_path(address)

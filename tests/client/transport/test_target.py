from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner
from polyhead_client import AsyncClient, Client, InvalidRequestError
from polyhead_client.cli.main import main
from polyhead_client.transport.target import parse


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.8.8:1", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("ipv6:[::1]:50051", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("dns:///localhost:50051", True),
        ("dns:localhost:50051", True),
        ("unix:/run/polyhead.sock", True),
        ("unix:///run/polyhead.sock", True),
        ("unix-abstract:polyhead", True),
        ("10.0.0.1:65535", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("dns:///model.example:50051", False),
        ("dns://10.0.0.1/localhost:50051", False),
        ("localhost.example:50051", False),
        ("127.0.0.1.example:50051", False),
        ("xds:///localhost", False),
    ],
)
def test_valid_target_is_passed_on_unchanged(target: str, local: bool) -> None:
    parsed = parse(target)
    assert (parsed.text, parsed.local) == (target, local)


def test_addresses_are_those_that_a_diagnosis_connects_to() -> None:
    assert parse("dns:///model.example:1").addresses == (("model.example", 1),)
    assert parse("ipv6:[::1]:1,[::2]:2").addresses == (("::1", 1), ("::2", 2))
    assert parse("unix:///run/a.sock").socket_path == "/run/a.sock"


INVALID: list[tuple[Any, str]] = [
    ("http://127.0.0.1:50051", "is a URL; a gRPC target has no http://, write '127.0.0.1:50051'"),
    ("HTTP://model.example:1/path?query", "write 'model.example:1'"),
    ("https://model.example", "write 'model.example:443' and use TLS"),
    ("grpc://user@model.example:1", "write 'model.example:1'"),
    ("grpcs://model.example:1", "use TLS"),
    ("http:model.example:1", "has an unknown scheme; write 'model.example:1'"),
    ("127.0.0.1", "has no port; write '127.0.0.1:50051'"),
    ("localhost", "has no port; write 'localhost:50051'"),
    ("dns:///model.example", "has no port; write 'dns:///model.example:50051'"),
    ("ipv4:127.0.0.1", "has no port"),
    ("[::1]", "has no port"),
    ("::1", "no brackets; write '[::1]:50051'"),
    ("::1:50051", "requires brackets; write '[::1]:50051'"),
    (":50051", "has no host; write '127.0.0.1:50051'"),
    ("", "empty; expected HOST:PORT"),
    (" \t", "empty; expected HOST:PORT"),
    (" 127.0.0.1:1\n", "white space or control characters; write '127.0.0.1:1'"),
    ("127.0.0.1:\x001", "white space or control characters"),
    ("127.0.0.1:0", "the port '0' is not a number from 1 to 65535"),
    ("127.0.0.1:65536", "the port '65536' is not"),
    ("127.0.0.1:" + "9" * 5000, "is not a number from 1 to 65535"),
    ("127.0.0.1:-1", "the port '-1' is not"),
    ("127.0.0.1:grpc", "the port 'grpc' is not"),
    ("127.0.0.1:", "the port '' is not"),
    ("127.0.0.1:\u0665", "is not a number"),
    ("127.0.0.1:1/path", "has a path; write '127.0.0.1:1'"),
    ("a:1,b:2", "has several addresses; write ipv4:"),
    ("ipv4:localhost:1", "'localhost' is not an IPv4 address"),
    ("ipv4:[::1]:1", "'::1' is not an IPv4 address"),
    ("unix:", "has no path"),
    (None, "expected a str such as '127.0.0.1:50051', not NoneType"),
    (b"127.0.0.1:1", "not bytes"),
    (50051, "not int"),
]


@pytest.mark.parametrize(("target", "problem"), INVALID)
def test_invalid_target_is_rejected_at_construction_with_the_fix(target: Any, problem: str) -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(InvalidRequestError) as caught:
            client(target)
        assert problem in caught.value.message
        assert caught.value.message.startswith("target: ")
        assert caught.value.reason == "INVALID_TARGET"


@pytest.mark.parametrize("command", [["info"], ["analyze", "text"], ["admin", "stats"], ["top", "--once"]])
def test_command_rejects_an_invalid_target_with_one_line(command: list[str]) -> None:
    result = CliRunner().invoke(main, [*command, "--target", "http://127.0.0.1:1"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "write '127.0.0.1:1'" in result.stderr
    assert result.stderr.count("\n") == 1

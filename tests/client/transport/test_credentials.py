from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from polyhead_client import AsyncClient, Client, InvalidRequestError, Tls
from polyhead_client.transport.credentials import authorization
from polyhead_client.transport.target import parse

KEY = "secret-0123456789"


def test_key_is_a_bearer_token() -> None:
    assert authorization(KEY, parse("127.0.0.1:1"), None, False) == (("authorization", f"Bearer {KEY}"),)
    assert authorization(None, parse("10.0.0.1:1"), None, False) == ()


def test_key_is_sent_to_another_machine_only_with_tls_or_on_request() -> None:
    with pytest.raises(InvalidRequestError, match="unencrypted") as caught:
        authorization(KEY, parse("10.0.0.1:1"), None, False)
    assert KEY not in str(caught.value)
    assert authorization(KEY, parse("10.0.0.1:1"), Tls(), False)
    assert authorization(KEY, parse("10.0.0.1:1"), None, True)


@pytest.mark.parametrize("key", ["", " ", "schlüssel", "two\nlines", KEY + "\n"])
def test_malformed_key_is_rejected_without_being_shown(key: str) -> None:
    with pytest.raises(InvalidRequestError, match="api_key") as caught:
        authorization(key, parse("127.0.0.1:1"), None, False)
    assert KEY not in str(caught.value)


def test_repr_does_not_contain_the_key() -> None:
    with Client(api_key=KEY) as client:
        assert repr(client) == "<Client target='127.0.0.1:50051'>"
        assert str(client) == repr(client)
    assert repr(client) == "<Client target='127.0.0.1:50051', closed>"


async def test_repr_of_the_asyncio_client_does_not_contain_the_key() -> None:
    async with AsyncClient(api_key=KEY) as client:
        assert repr(client) == "<AsyncClient target='127.0.0.1:50051'>"


def test_client_certificate_without_its_key_is_rejected() -> None:
    with pytest.raises(InvalidRequestError, match="set both"):
        Tls(key_file="key.pem")


def test_error_names_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"ca_file: cannot read .*missing\.pem: No such file"):
        Client(tls=Tls(ca_file=tmp_path / "missing.pem"))


@pytest.mark.parametrize(
    "options",
    [
        {"connections": 0},
        {"connections": "4"},
        {"connections": True},
        {"max_attempts": 0},
        {"max_attempts": 2.5},
        {"hedge_after_s": 0},
        {"hedge_after_s": "p99"},
        {"api_key": ""},
        {"api_key": KEY.encode()},
        {"tls": True},
        {"tls": "ca.pem"},
    ],
)
def test_error_names_the_invalid_argument(options: dict[str, Any]) -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(InvalidRequestError, match=f"^INVALID_ARGUMENT: {next(iter(options))}: ") as caught:
            client(**options)
        assert KEY not in str(caught.value)

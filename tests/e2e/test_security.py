"""Which calls a real server process accepts, and how the others end: the table of the security guide."""

from __future__ import annotations

import datetime
import re
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench.harness.servers import free_port
from tests.support.certificates import DAY, Authority
from tests.support.polling import wait_until
from tests.support.secured_server import (
    KEYS,
    READER,
    Secured,
    bearer,
    connect,
    described,
    outcome,
    presented,
    serve,
    write_keys,
)
from tests.support.sources import documentation_page

from .conftest import START_S, Start

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def secured(start: Start, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory, metrics_port: int) -> Secured:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder)
    files, client = authority.issue("server"), authority.issue("client")
    keys = write_keys(folder / "keys.toml", list(KEYS))
    flags = (*files.flags, "--tls-client-ca", str(authority.cert), "--api-keys", str(keys))
    flags += ("--metrics-listen", f"127.0.0.1:{metrics_port}")
    return Secured(serve(start, demo_bundle, *flags), authority, files, client, keys)


def other_authority(secured: Secured) -> Authority:
    folder = secured.keys.parent / "other"
    folder.mkdir(exist_ok=True)
    return Authority(folder)


def by_wrong_client_certificate(secured: Secured) -> str:
    return outcome(secured.open(other_authority(secured).issue("client")))


def by_expired_client_certificate(secured: Secured) -> str:
    return outcome(secured.open(secured.authority.issue("expired", begins=-3 * DAY, ends=-DAY)))


def by_unknown_method(secured: Secured) -> str:
    with secured.open() as channel:
        call: Any = channel.unary_unary("/polyhead.v1.InferenceService/Nothing")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=READER, timeout=START_S)
    return described(caught.value)


def reflected(channel: grpc.Channel) -> str:
    """Returns how a call of the reflection service without a key ends."""
    with channel:
        call: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        try:
            list(call(iter([b""]), timeout=START_S))
        except grpc.RpcError as error:
            return described(error)
    return "OK"


def by_health(secured: Secured) -> str:
    with secured.open() as channel:
        call: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        return "OK" if call(b"", timeout=START_S) == b"\x08\x01" else "not serving"


# The first column of the table, and a call of that kind.
CASES: dict[str, Callable[[Secured], str]] = {
    "a valid certificate and a valid key": lambda secured: outcome(secured.open()),
    "plaintext to a port with TLS": lambda secured: outcome(grpc.insecure_channel(secured.server.target)),
    "no certificate where the server requires one": lambda secured: outcome(
        connect(secured.server, secured.authority, None)
    ),
    "a client certificate of another authority": by_wrong_client_certificate,
    "an expired client certificate": by_expired_client_certificate,
    "a client that trusts another authority": lambda secured: outcome(secured.open(authority=other_authority(secured))),
    "no key": lambda secured: outcome(secured.open(), ()),
    "a wrong key": lambda secured: outcome(secured.open(), bearer("wrong")),
    "an expired key": lambda secured: outcome(secured.open(), bearer("expired")),
    "a valid key for another method": lambda secured: outcome(secured.open(), bearer("probe")),
    "a valid key for a method that does not exist": by_unknown_method,
    "reflection without a key": lambda secured: reflected(secured.open()),
    "the health service without a key": by_health,
}


def documented() -> dict[str, str]:
    """Returns how a call ends, by what the client presents, as the table of the security guide states."""
    page = documentation_page("a valid certificate and a valid key", "the health service without a key")
    rows = re.findall(r"^\| (.+?) \| `([A-Z_ `]+)` \|", page.read_text(), re.MULTILINE)
    return {case: ending.replace("`", "") for case, ending in rows}


@pytest.mark.parametrize("case", CASES)
def test_call_ends_as_documented(case: str, secured: Secured) -> None:
    assert CASES[case](secured) == documented()[case]
    # Control: the server answers an authorized client.
    assert outcome(secured.open()) == "OK"


def test_every_documented_ending_is_measured() -> None:
    assert set(documented()) == set(CASES)


def certificate(secured: Secured) -> int:
    return presented(secured.server, secured.authority, secured.client)


def test_invalid_certificate_keeps_the_old_one_and_is_logged_once(secured: Secured) -> None:
    before, log = certificate(secured), secured.server.log
    refusal = "certificate has expired; the previous version stays in force"
    secured.files.replace(secured.authority.issue("old", begins=-3 * DAY, ends=-DAY))
    wait_until(lambda: refusal in log.read_text(), "the expired certificate is refused")
    for _ in range(3):
        assert outcome(secured.open()) == "OK"
        assert certificate(secured) == before
    assert log.read_text().count(refusal) == 1
    secured.files.replace(secured.authority.issue("repaired"))
    wait_until(lambda: certificate(secured) != before, "the repaired certificate is presented")


def test_certificate_that_expires_while_it_is_served_is_rejected_by_clients(secured: Secured) -> None:
    before = certificate(secured)
    short = secured.authority.issue("short", ends=datetime.timedelta(seconds=8))
    secured.files.replace(short)
    try:
        wait_until(lambda: certificate(secured) != before, "the new certificate is presented")
        assert outcome(secured.open()) == "OK"
        ends = time.monotonic() + START_S
        while (ending := outcome(secured.open())) == "OK":
            assert time.monotonic() < ends
        assert ending == "UNAVAILABLE"
    finally:
        secured.files.replace(secured.authority.issue("long"))
    wait_until(lambda: outcome(secured.open()) == "OK", "the last certificate is presented")


def test_metric_shows_when_the_certificate_expires(secured: Secured, metrics_port: int) -> None:
    def expires_in_two_days() -> bool:
        # A renewed certificate is in force from the next connection on.
        assert outcome(secured.open()) == "OK"
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=START_S) as page:
            value = re.search(r"^polyhead_certificate_expiry_seconds (\S+)$", page.read().decode(), re.MULTILINE)
        assert value
        return abs(float(value[1]) - time.time() - 2 * DAY.total_seconds()) < 2 * START_S

    assert not expires_in_two_days()
    secured.files.replace(secured.authority.issue("two-days", ends=2 * DAY))
    wait_until(expires_in_two_days, "the metric shows the new certificate")
    secured.files.replace(secured.authority.issue("long"))
    wait_until(lambda: not expires_in_two_days(), "the metric shows the next certificate")


def test_workers_serve_with_tls_and_keys_and_without_reflection(
    start: Start, demo_bundle: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    keys = write_keys(tmp_path / "keys.toml", ["reader"])
    files = authority.issue("server")
    flags = (*files.flags, "--api-keys", str(keys), "--no-reflection")
    server = serve(start, demo_bundle, "--workers", "2", *flags)
    assert outcome(connect(server, authority, None)) == "OK"
    assert outcome(connect(server, authority, None), bearer("wrong")) == "UNAUTHENTICATED UNAUTHENTICATED"
    assert outcome(grpc.insecure_channel(server.target)) == "UNAVAILABLE"
    assert reflected(connect(server, authority, None)) == "UNIMPLEMENTED"
    assert server.stop(signal.SIGTERM) == 0

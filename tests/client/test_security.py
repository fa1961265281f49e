"""TLS, client certificates and API keys of both clients and the command, against real servers."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc
from polyhead_client import InvalidRequestError, Tls, UnavailableError
from polyhead_client.cli.main import main

from tests.support.both_clients import Face
from tests.support.fake_server import FakeServicer, serve_fake

KEY = "secret-0123456789"


@dataclass(frozen=True)
class Pair:
    """A self-signed certificate and its private key."""

    certificate: Path
    key: Path


def pair(folder: Path, name: str, days: int = 0, alternative_names: bool = True) -> Pair:
    """Creates a certificate for a host name, valid ``days`` from now; for localhost also for the loopback address."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    day = datetime.timedelta(days=1)
    valid = datetime.datetime.now(datetime.UTC) + days * day
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    if name == "localhost":
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(valid - day).not_valid_after(valid + day / 2)
    if alternative_names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    made = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    made.certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    made.key.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return made


@contextlib.contextmanager
def secured(own: Pair, client: Pair | None = None) -> Iterator[FakeServicer]:
    """Serves with TLS; if ``client`` is given, clients must present its certificate."""
    chain = [(own.key.read_bytes(), own.certificate.read_bytes())]
    roots = client.certificate.read_bytes() if client else None
    with serve_fake(grpc.ssl_server_credentials(chain, roots, require_client_auth=client is not None)) as servicer:
        yield servicer


def test_server_with_a_trusted_certificate_answers(connect: Any, tmp_path: Path) -> None:
    own = pair(tmp_path, "localhost")
    with secured(own) as servicer:
        client: Face = connect(servicer.target, tls=Tls(ca_file=own.certificate), api_key=KEY)
        client.analyze(["text"])
        list(client.stream(["text"]))
    assert [one["authorization"] for one in servicer.metadata] == [f"Bearer {KEY}"] * 2


def test_server_with_an_untrusted_certificate_gets_no_call(connect: Any, tmp_path: Path) -> None:
    other = pair(tmp_path, "other.example")
    with secured(pair(tmp_path, "localhost")) as servicer, pytest.raises(UnavailableError):
        connect(servicer.target, tls=Tls(ca_file=other.certificate), api_key=KEY, max_attempts=1).analyze(["text"])
    assert servicer.calls == []


def test_server_with_another_name_gets_calls_only_if_that_name_is_expected(connect: Any, tmp_path: Path) -> None:
    own = pair(tmp_path, "model.example")
    with secured(own) as servicer:
        with pytest.raises(UnavailableError):
            connect(servicer.target, tls=Tls(ca_file=own.certificate), max_attempts=1).analyze(["text"])
        connect(servicer.target, tls=Tls(ca_file=own.certificate, server_name="model.example")).analyze(["text"])
    assert servicer.calls == ["Analyze"]


def test_server_that_requires_a_client_certificate_gets_it(connect: Any, tmp_path: Path) -> None:
    own, mine = pair(tmp_path, "localhost"), pair(tmp_path, "client.example")
    with secured(own, mine) as servicer:
        with pytest.raises(UnavailableError):
            connect(servicer.target, tls=Tls(ca_file=own.certificate), max_attempts=1).analyze(["text"])
        connect(servicer.target, tls=Tls(own.certificate, mine.certificate, mine.key)).analyze(["text"])
    assert servicer.calls == ["Analyze"]


def test_client_without_a_key_sends_none(client: Face, servicer: FakeServicer) -> None:
    client.info()
    assert "authorization" not in servicer.metadata[0]


def test_key_goes_along_with_every_kind_of_call(connect: Any, servicer: FakeServicer) -> None:
    client: Face = connect(servicer.target, api_key=KEY, hedge_after_s=30)
    client.info()
    client.analyze(["text"])
    list(client.stream(["text"], "stream_embed"))
    assert [one["authorization"] for one in servicer.metadata] == [f"Bearer {KEY}"] * 3


def test_name_of_the_model_goes_along_with_every_kind_of_call(connect: Any, servicer: FakeServicer) -> None:
    client: Face = connect(servicer.target, model="tickets", api_key=KEY)
    client.info()
    client.analyze(["text"])
    list(client.stream(["text"], "stream_embed"))
    assert [one["x-polyhead-model"] for one in servicer.metadata] == ["tickets"] * 3
    assert [one["authorization"] for one in servicer.metadata] == [f"Bearer {KEY}"] * 3


def test_without_a_name_none_is_sent(client: Face, servicer: FakeServicer) -> None:
    client.info()
    assert "x-polyhead-model" not in servicer.metadata[0]


@pytest.mark.parametrize("name", ["", " ", "a\nb", "ä", 7])
def test_name_that_cannot_be_sent_is_refused(connect: Any, name: Any) -> None:
    with pytest.raises(InvalidRequestError, match="model: must be"):
        connect("127.0.0.1:1", model=name)


def test_command_takes_tls_and_a_key_from_files(tmp_path: Path) -> None:
    own, mine = pair(tmp_path, "localhost"), pair(tmp_path, "client.example")
    (tmp_path / "key").write_text(KEY + "\n")
    flags = ["--ca", own.certificate, "--cert", mine.certificate, "--key", mine.key, "--api-key-file", tmp_path / "key"]
    with secured(own, mine) as servicer:
        arguments = ["info", "--json", "--target", servicer.target, *map(str, flags)]
        result = CliRunner().invoke(main, arguments)
    assert json.loads(result.stdout)["model_id"] == "fake-0123456789ab"
    assert servicer.metadata[0]["authorization"] == f"Bearer {KEY}"


def test_command_reads_the_key_from_the_environment(servicer: FakeServicer) -> None:
    environment = {"POLYHEAD_TARGET": servicer.target, "POLYHEAD_API_KEY": KEY}
    assert CliRunner(env=environment).invoke(main, ["classify", "text"]).exit_code == 0
    assert servicer.metadata[0]["authorization"] == f"Bearer {KEY}"


def test_command_sends_no_key_over_a_network_unencrypted() -> None:
    environment = {"POLYHEAD_API_KEY": KEY}
    result = CliRunner(env=environment).invoke(main, ["info", "--target", "10.255.255.1:50051"])
    assert result.exit_code == 2
    assert "unencrypted" in result.stderr
    assert KEY not in result.output


def test_command_requires_certificate_and_key_together(tmp_path: Path) -> None:
    own = pair(tmp_path, "localhost")
    result = CliRunner().invoke(main, ["info", "--cert", str(own.certificate)])
    assert (result.exit_code, "give both" in result.stderr) == (2, True)


@pytest.mark.parametrize("source", ["flags", "environment"])
def test_command_calls_a_server_whose_certificate_has_another_name(tmp_path: Path, source: str) -> None:
    own, mine = pair(tmp_path, "model.example"), pair(tmp_path, "client.example")
    named = {"ca": own.certificate, "cert": mine.certificate, "key": mine.key, "server_name": "model.example"}
    flags = [part for name, value in named.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    environment = {f"POLYHEAD_{name.upper()}": str(value) for name, value in named.items()}
    with secured(own, mine) as servicer:
        arguments = ["info", "--target", servicer.target]
        if source == "flags":
            result = CliRunner().invoke(main, [*arguments, *flags])
        else:
            result = CliRunner(env={"POLYHEAD_TLS": "1", **environment}).invoke(main, arguments)
        assert CliRunner().invoke(main, [*arguments, *flags[:-2]]).exit_code == 2  # control: the name in the target
    assert (result.exit_code, servicer.calls) == (0, ["GetModelInfo"])


def test_local_calls_bypass_the_proxy(connect: Any, servicer: FakeServicer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with grpc.insecure_channel(servicer.target) as channel, pytest.raises(grpc.RpcError):  # control
        inference_service_pb2_grpc.InferenceServiceStub(channel).GetModelInfo(pb2.GetModelInfoRequest(), timeout=20)
    assert connect(servicer.target, api_key=KEY).info().model_id == "fake-0123456789ab"

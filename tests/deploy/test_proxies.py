"""The settings of the guide for proxies, with the real programs in front of a real server: TLS, gRPC, HTTP, streams."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from polyhead_client import Client, Tls

from bench.harness.servers import free_port
from tests.e2e.conftest import Server, Start, start
from tests.support.certificates import Authority
from tests.support.demo import ROOT
from tests.support.polling import wait_until

__all__ = ["start"]

pytestmark = [pytest.mark.slow, pytest.mark.model]

GUIDE = (ROOT / "docs/guides/deploy.md").read_text()


@dataclass(frozen=True)
class Proxy:
    """A running proxy.

    Attributes:
        port: Its port on 127.0.0.1, with TLS.
        ca: PEM file with the authority of its certificate.
        server: The server behind it.
    """

    port: int
    ca: Path
    server: Server

    def connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=self.ca)
        return http.client.HTTPSConnection("localhost", self.port, context=context, timeout=60)

    def is_ready(self) -> bool:
        connection = self.connect()
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def settings(language: str, replacements: dict[str, str]) -> str:
    """Returns the settings of the guide with other ports and files."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    for old, new in replacements.items():
        assert old in block
        block = block.replace(old, new)
    assert isinstance(block, str)
    return block


def nginx(folder: Path, replacements: dict[str, str]) -> list[str]:
    paths = [f"{name}_temp_path {folder / name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    http_context = "\n".join([*paths, "access_log off;", settings("nginx", replacements)])
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"daemon off; {user} pid {folder / 'pid'}; error_log stderr;\nevents {{}}\nhttp {{\n{http_context}\n}}\n"
    )
    return ["nginx", "-e", "stderr", "-c", str(folder / "nginx.conf")]


def haproxy(folder: Path, replacements: dict[str, str]) -> list[str]:
    (folder / "haproxy.cfg").write_text(settings("text", replacements))
    return ["haproxy", "-f", str(folder / "haproxy.cfg")]


@pytest.fixture(params=["nginx", "haproxy"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path, start: Start, demo_bundle: Path) -> Iterator[Proxy]:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    authority = Authority(tmp_path)
    files = authority.issue("proxy")
    pem = tmp_path / "chain.pem"
    pem.write_bytes(files.cert.read_bytes() + files.key.read_bytes())
    http_port, port = free_port(), free_port()
    server = start(demo_bundle, "--http-listen", f"127.0.0.1:{http_port}")
    server.wait_until_serving()
    replacements = {"127.0.0.1:50051": server.target, "8080": str(http_port), "/etc/ssl/polyhead.pem": str(pem)}
    if request.param == "nginx":
        command = nginx(tmp_path, replacements | {"443": f"127.0.0.1:{port}", "/etc/ssl/polyhead.key": str(files.key)})
    else:
        command = haproxy(tmp_path, replacements | {":443": f"127.0.0.1:{port}"})
    with (tmp_path / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        found = Proxy(port, authority.cert, server)
        wait_until(lambda: process.poll() is not None or found.is_ready(), "the proxy passes calls on")
        assert process.poll() is None, (tmp_path / "proxy.log").read_text()
        yield found
    finally:
        process.terminate()
        process.wait(30)


def test_proxy_serves_grpc_and_http_on_one_port(proxy: Proxy) -> None:
    texts = [f"Parcel {number} is late" for number in range(300)]
    with Client(proxy.server.target) as direct:
        expected = direct.embeddings(texts[:20])
    with Client(f"localhost:{proxy.port}", tls=Tls(ca_file=proxy.ca)) as client:
        assert abs(client.embeddings(texts[:20]) - expected).max() < 1e-6
        assert sum(answer.unwrap() is not None for answer in client.stream(texts)) == len(texts)
    connection = proxy.connect()
    connection.request("POST", "/v1/embeddings", json.dumps({"input": texts[:1], "model": "demo"}))
    response = connection.getresponse()
    assert response.status == 200, response.read()
    assert json.loads(response.read())["data"][0]["embedding"] == pytest.approx(expected[0].tolist(), abs=1e-6)
    connection.close()


def test_each_line_is_answered_before_the_next_is_sent(proxy: Proxy) -> None:
    connection = proxy.connect()
    connection.putrequest("POST", "/v1/analyze?tasks=sentiment")
    connection.putheader("content-type", "application/x-ndjson")
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    response = None
    for number in range(5):
        line = json.dumps({"id": str(number), "text": "Parcel is late"}).encode() + b"\n"
        connection.send(b"%x\r\n%s\r\n" % (len(line), line))
        response = response or connection.getresponse()
        assert json.loads(response.readline())["id"] == str(number)
    connection.send(b"0\r\n\r\n")
    assert response is not None
    assert response.read() == b""
    connection.close()

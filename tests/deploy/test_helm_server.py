"""The server starts with the arguments, variables and files of the chart's pods, and its probes succeed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from polyhead_client import Client, Tls

from bench.harness.servers import free_port
from tests.e2e.conftest import START_S
from tests.support.certificates import Authority
from tests.support.demo import BIN
from tests.support.polling import wait_until
from tests.support.rendered_chart import CHART, environment, server, template
from tests.support.secured_server import write_keys

pytestmark = pytest.mark.model


def test_server_and_probes_work_with_client_certificates_and_keys(demo_bundle: Path, tmp_path: Path) -> None:
    # The files of the secrets, as the volumes mount them.
    authority = Authority(tmp_path)
    for folder, name in (("tls", "server"), ("probe-tls", "probe")):
        (tmp_path / folder).mkdir()
        files = authority.issue(name)
        files.cert.rename(tmp_path / folder / "tls.crt")
        files.key.rename(tmp_path / folder / "tls.key")
    (tmp_path / "tls/ca.crt").write_bytes(authority.cert.read_bytes())
    (tmp_path / "api-keys").mkdir()
    write_keys(tmp_path / "api-keys/keys.toml", ["reader", "probe"])
    ports = {port: free_port() for port in ("50051", "8080", "9464")}

    def mapped(text: str) -> str:
        for mount, path in (("/tls/", "tls/"), ("/probe-tls/", "probe-tls/"), ("/api-keys/", "api-keys/")):
            text = f"{tmp_path}/{path}{text.removeprefix(mount)}" if text.startswith(mount) else text
        for old, new in ports.items():
            text = text.replace(f"0.0.0.0:{old}", f"127.0.0.1:{new}")
        return text

    values = yaml.safe_load((CHART / "ci/mutual-tls-values.yaml").read_text())
    values["tls"]["serverName"] = "localhost"
    values |= {"flags": {"log-format": "json"}, "workers": 2, "dialects": ["polyhead", "oip"]}
    rendered = template(values)
    secret = {"secretKeyRef": {"name": "polyhead-probe-key", "key": "key"}}
    variables = {name: "probe" if value == secret else mapped(value) for name, value in environment(rendered).items()}
    variables = {**os.environ, **variables, "POLYHEAD_TARGET": f"127.0.0.1:{ports['50051']}"}
    probe = [mapped(one) for one in server(rendered)["readinessProbe"]["exec"]["command"]]

    def succeeds() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        return (
            subprocess.run([BIN / probe[0], *probe[1:]], env=variables, capture_output=True, check=False).returncode
            == 0
        )

    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([BIN / "polyhead-serve", str(demo_bundle)], env=variables, stderr=log)
    try:
        wait_until(succeeds, "the readiness probe succeeds")
        credentials = Tls(tmp_path / "tls/ca.crt", tmp_path / "probe-tls/tls.crt", tmp_path / "probe-tls/tls.key")
        with Client(f"localhost:{ports['50051']}", tls=credentials, api_key="reader") as client:
            assert client.analyze(["one"])[0].result
    finally:
        process.terminate()
        assert process.wait(START_S) == 0
    assert all(json.loads(line) for line in (tmp_path / "log").read_text().splitlines())

"""The ports, addresses and variables of every deployment agree with each other and with the server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml  # type: ignore[import-untyped]
from polyhead_client.cli.main import main as client
from polyhead_server.cli import main as serve
from polyhead_server.errors import StartupError
from polyhead_server.settings import Settings

from tests.support.demo import ROOT

BASE = ROOT / "deploy/kubernetes/base"
UNIT_VARIABLES = (ROOT / "deploy/systemd/polyhead.env").read_text()
DOCKER = ROOT / "deploy/container/Dockerfile"
DOCKERFILE = DOCKER.read_text()
# Used by the unit, and by the client of the HEALTHCHECK.
OTHER_VARIABLES = {"POLYHEAD_BUNDLE", "POLYHEAD_TARGET", "POLYHEAD_API_KEY"}


def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((BASE / f"{name}.yaml").read_text())
    return loaded


def container() -> dict[str, Any]:
    (found,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def kubernetes() -> dict[str, str]:
    return {one["name"]: one["value"] for one in container()["env"]}


def image() -> dict[str, str]:
    return dict(re.findall(r"^(?:ENV|   ) .*?(POLYHEAD_\w+)=(\S+)", DOCKERFILE, re.MULTILINE))


def unit(*, commented: bool = False) -> dict[str, str]:
    return dict(re.findall(rf"^{'#' if commented else ''}(POLYHEAD_\w+)=(\S*)$", UNIT_VARIABLES, re.MULTILINE))


def settings(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Returns the settings of a server with these variables alone."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with serve.make_context("polyhead-serve", ["bundle"]) as context:
        values = dict(context.params)
    values.pop("check")
    (bundle,) = values.pop("bundles")
    return Settings(bundle=bundle, **values)


def test_server_accepts_the_variables_of_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = settings(kubernetes(), monkeypatch)
    assert (accepted.listen, accepted.http_listen) == ("0.0.0.0:50051", "0.0.0.0:8080")
    monkeypatch.delenv("POLYHEAD_ALLOW_PLAINTEXT")
    with pytest.raises(StartupError, match="--allow-plaintext"):
        settings({}, monkeypatch)


def test_empty_variable_turns_http_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings({**kubernetes(), "POLYHEAD_HTTP_LISTEN": ""}, monkeypatch).http_listen == ""


def test_server_accepts_the_variables_of_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(unit(), monkeypatch).http_listen == ""
    # Every commented line at once: beyond loopback, with TLS.
    assert settings(unit(commented=True), monkeypatch).http_listen == "0.0.0.0:8080"


def test_image_requires_a_decision_about_plaintext_and_serves_http_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert image().keys() >= {"POLYHEAD_LISTEN", "POLYHEAD_DEVICE"}
    with pytest.raises(StartupError, match="--allow-plaintext"):
        settings(image(), monkeypatch)
    assert settings({"POLYHEAD_ALLOW_PLAINTEXT": "true"}, monkeypatch).http_listen == ""
    assert settings({"POLYHEAD_HTTP_LISTEN": "0.0.0.0:8080"}, monkeypatch).http_listen == "0.0.0.0:8080"


def test_ports_of_the_manifests_are_those_of_the_server() -> None:
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    variables = {"grpc": "POLYHEAD_LISTEN", "http": "POLYHEAD_HTTP_LISTEN", "metrics": "POLYHEAD_METRICS_LISTEN"}
    assert ports == {name: int(kubernetes()[variable].rpartition(":")[2]) for name, variable in variables.items()}
    # Headless: clients connect to the container's port.
    service = {port["name"]: (port["port"], port["targetPort"]) for port in manifest("service")["spec"]["ports"]}
    assert service == {name: (port, name) for name, port in ports.items()}
    allowed = [port["port"] for rule in manifest("networkpolicy")["spec"]["ingress"] for port in rule["ports"]]
    assert sorted(allowed) == sorted(ports)
    probes = [probe["grpc"]["port"] for name, probe in container().items() if name.endswith("Probe")]
    assert probes == [ports["grpc"]] * 3
    exposed = re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)
    assert exposed is not None
    assert exposed[1].split() == [str(ports["grpc"]), str(ports["http"])]


@pytest.mark.parametrize(
    "path",
    [DOCKER, *(path for path in sorted((ROOT / "deploy").rglob("*")) if path.suffix in {".yaml", ".env", ".service"})],
    ids=lambda path: path.name,
)
def test_every_variable_is_a_flag(path: Path) -> None:
    flags = {f"POLYHEAD_{parameter.name}".upper() for parameter in (*serve.params, *_client_parameters(client))}
    assert set(re.findall(r"\bPOLYHEAD_[A-Z_]+[A-Z]\b", path.read_text())) - flags - OTHER_VARIABLES == set()


def _client_parameters(command: click.Command) -> list[click.Parameter]:
    nested = command.commands.values() if isinstance(command, click.Group) else []
    return [*command.params, *(parameter for one in nested for parameter in _client_parameters(one))]

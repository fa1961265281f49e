"""The Helm chart, rendered by Helm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.support.demo import ROOT
from tests.support.deploy_tools import find_tool

CHART = ROOT / "deploy/helm/polyhead"
Objects = dict[str, dict[str, Any]]


def run(name: str, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Runs one of the tools of ``make deploy-tools``; skips the test where it is not installed."""
    program = find_tool(name)
    if program is None:
        pytest.skip(f"{name} is not installed; run make deploy-tools")
    return subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False)


def objects(text: str) -> Objects:
    """Returns the objects of a YAML stream by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all(text) if one}


def template(values: Mapping[str, Any] | None = None, *arguments: str) -> Objects:
    """Renders the chart with values on top of its own; returns the objects by kind."""
    result = run("helm", "template", "polyhead", str(CHART), "--values", "-", *arguments, text=json.dumps(values or {}))
    assert result.returncode == 0, result.stderr
    return objects(result.stdout)


def refusal(values: Mapping[str, Any]) -> str:
    """Returns the message with which Helm rejects values."""
    result = run("helm", "template", "polyhead", str(CHART), "--values", "-", text=json.dumps(values))
    assert result.returncode != 0
    return result.stderr


def pod(rendered: Objects) -> dict[str, Any]:
    """Returns the specification of the Deployment's pods."""
    spec: dict[str, Any] = rendered["Deployment"]["spec"]["template"]["spec"]
    return spec


def server(rendered: Objects) -> dict[str, Any]:
    """Returns the container of the server."""
    (container,) = pod(rendered)["containers"]
    assert isinstance(container, dict)
    return container


def environment(rendered: Objects) -> dict[str, Any]:
    """Returns the values, or their sources, of the server's variables."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in server(rendered)["env"]}


def volume(rendered: Objects, name: str) -> dict[str, Any]:
    """Returns a volume of the pods."""
    (found,) = [one for one in pod(rendered)["volumes"] if one["name"] == name]
    assert isinstance(found, dict)
    return found

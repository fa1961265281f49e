"""The chart renders the objects of the kustomize base, and refuses values that contradict each other."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml  # type: ignore[import-untyped]
from polyhead_server.cli import main as serve

from tests.support.demo import ROOT
from tests.support.rendered_chart import CHART, Objects, objects, refusal, run, template

KUBERNETES = ROOT / "deploy/kubernetes"
# Labels that Helm's conventions add; the kustomize base has only the name.
HELM_LABELS = {
    "helm.sh/chart",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
}
URI = {"persistentVolumeClaim": "", "digest": "0" * 64, "uri": {"source": "s3://models/t"}}


def kustomized(tmp_path: Path, *components: str) -> Objects:
    """Builds the kustomize base with components."""
    overlay = {
        "resources": [os.path.relpath(KUBERNETES / "base", tmp_path)],
        "components": [os.path.relpath(KUBERNETES / name, tmp_path) for name in components],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    result = run("kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(tmp_path))
    assert result.returncode == 0, result.stderr
    return objects(result.stdout)


def comparable(value: Any) -> Any:
    """Returns an object without Helm's labels, with lists of named things in the order of the names."""
    if isinstance(value, dict):
        return {key: comparable(inner) for key, inner in value.items() if key not in HELM_LABELS}
    if isinstance(value, list):
        named = all(isinstance(inner, dict) and "name" in inner for inner in value)
        inner = [comparable(inner) for inner in value]
        return sorted(inner, key=lambda one: str(one["name"])) if named else inner
    return value


@pytest.mark.parametrize(
    ("values", "components"),
    [
        ({}, ()),
        (
            {"autoscaling": {"hpa": {"enabled": True}}, "metrics": {"serviceMonitor": {"enabled": True}}},
            ("autoscaling", "monitoring"),
        ),
        ({"autoscaling": {"keda": {"enabled": True}}}, ("autoscaling-keda",)),
    ],
)
def test_chart_renders_the_objects_of_the_kustomize_base(
    values: Mapping[str, Any], components: tuple[str, ...], tmp_path: Path
) -> None:
    chart, base = template(values), kustomized(tmp_path, *components)
    assert set(chart) == set(base)
    for kind, one in base.items():
        assert comparable(chart[kind]) == comparable(one)


def test_control_a_changed_value_is_a_difference(tmp_path: Path) -> None:
    chart, base = template({"drain": {"delaySeconds": 6}}), kustomized(tmp_path)
    assert comparable(chart["Deployment"]) != comparable(base["Deployment"])


@pytest.mark.parametrize("values", sorted(CHART.glob("ci/*-values.yaml")), ids=lambda path: path.stem)
def test_chart_passes_lint_with_each_set_of_values(values: Path) -> None:
    result = run("helm", "lint", "--strict", "--quiet", "--values", str(values), str(CHART))
    assert result.returncode == 0, result.stdout


def test_flags_of_the_values_are_those_of_the_server() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    flags = set(schema["properties"]["flags"]["propertyNames"]["enum"])
    everything = {
        name.removeprefix("--")
        for option in serve.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--")
    }
    # The chart has values of its own for these.
    own = {"listen", "http-listen", "metrics-listen", "drain-timeout-s", "drain-delay-s", "workers", "dialects"}
    own |= {"tls-cert", "tls-key", "tls-client-ca", "allow-plaintext", "api-keys", "allow-plaintext-keys"}
    assert flags == everything - own - {"check", "version", "help"}


def test_schema_has_every_value_and_rejects_others() -> None:
    def names(schema: Mapping[str, Any], values: Any, path: str) -> None:
        if "properties" in schema and isinstance(values, dict):
            assert schema["additionalProperties"] is False, path
            assert set(values) <= set(schema["properties"]), path
            assert set(schema["properties"]) - set(values) <= {"global"}, path
            for name, inner in values.items():
                names(schema["properties"][name], inner, f"{path}.{name}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    names(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "values")


def test_version_is_that_of_the_server() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    kustomization = yaml.safe_load((KUBERNETES / "base/kustomization.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == kustomization["images"][0]["newTag"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"replica": 3}, "'replica' not allowed"),
    ({"flags": {"log-fromat": "json"}}, "invalid propertyName 'log-fromat'"),
    ({"dialects": ["grpc"]}, "/dialects/0"),
    ({"image": {"digest": "sha256:1"}}, "/image/digest"),
    ({"bundle": {"image": {"reference": "r/b:latest"}}}, "/bundle/image/reference"),
    ({"bundle": {"path": "../other"}}, "/bundle/path"),
    ({"bundle": {"persistentVolumeClaim": ""}}, "set exactly one source of the bundle"),
    ({"bundle": URI | {"persistentVolumeClaim": "p"}}, "set exactly one source of the bundle"),
    ({"bundle": URI | {"digest": ""}}, "requires bundle.digest"),
    ({"bundle": {"models": [{"name": "a", "path": "b"}]}}, "bundle.models excludes bundle.path"),
    ({"bundle": URI | {"path": "", "digest": "", "models": [{"name": "a", "path": "b"}]}}, "a URI is one bundle"),
    ({"bundle": {"path": "", "models": [{"name": "a", "path": "b"}]}, "workers": 2}, "requires workers=1"),
    ({"bundle": {"path": "", "models": [{"name": "a/b", "path": "b"}]}}, "/bundle/models/0/name"),
    ({"bundle": URI}, "requires networkPolicy.egress"),
    ({"flags": {"otlp-endpoint": "http://collector:4317"}}, "requires networkPolicy.egress"),
    ({"tls": {"secretName": "t"}}, "requires tls.serverName"),
    ({"tls": {"clientCa": True}}, "requires tls.secretName"),
    ({"tls": {"secretName": "t", "serverName": "p", "clientCa": True}}, "requires tls.probeSecretName"),
    ({"apiKeys": {"secretName": "k"}}, "apiKeys.allowPlaintext=true"),
    (
        {"apiKeys": {"secretName": "k"}, "tls": {"secretName": "t", "serverName": "p"}},
        "requires apiKeys.probeSecretName",
    ),
    ({"autoscaling": {"hpa": {"enabled": True}, "keda": {"enabled": True}}}, "enable one of"),
    ({"autoscaling": {"minReplicas": 9}}, "minReplicas exceeds"),
    ({"metrics": {"enabled": False, "serviceMonitor": {"enabled": True}}}, "requires metrics.enabled"),
    ({"drain": {"timeoutSeconds": 5}}, "drain.delaySeconds must be less"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_contradictions_and_unknown_values_are_refused(values: Mapping[str, Any], message: str) -> None:
    assert message in refusal(values)

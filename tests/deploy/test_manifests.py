"""The manifests of bulk jobs and custom resources agree with each other and with the schemas of their kinds."""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml  # type: ignore[import-untyped]
from polyhead_bulk.cli import bulk
from polyhead_bulk.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE

from tests.support.demo import ROOT

DEPLOY = ROOT / "deploy"
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in DEPLOY.glob("schemas/*.json")}


def manifest(path: str) -> dict[str, Any]:
    one: dict[str, Any] = yaml.safe_load((DEPLOY / path).read_text())
    return one


CUSTOM = [
    path
    for path in sorted((*DEPLOY.glob("ku*/**/*.yaml"), *DEPLOY.glob("kserve/*.yaml")))
    if yaml.safe_load(path.read_text())["kind"].lower() in SCHEMAS
]
JOB, CRON_JOB = manifest("kubernetes/bulk/job.yaml"), manifest("kubernetes/bulk/cronjob.yaml")


def test_every_custom_kind_has_a_manifest_and_a_source() -> None:
    assert {yaml.safe_load(path.read_text())["kind"].lower() for path in CUSTOM} == set(SCHEMAS)
    for schema in SCHEMAS.values():
        assert re.search(r"from https://github\.com/\S+ at [0-9a-f]{12}.*, Apache-2\.0$", schema["$comment"])


@pytest.mark.parametrize("path", CUSTOM, ids=lambda path: path.stem)
def test_manifest_matches_its_schema_and_an_unknown_field_does_not(path: Path) -> None:
    one = yaml.safe_load(path.read_text())
    schema = SCHEMAS[one["kind"].lower()]
    jsonschema.validate(one, schema)
    for wrong in (one | {"spec": one["spec"] | {"replicaCount": 1}}, one | {"apiVersion": "v1"}, one | {"spec": []}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_number_of_shards_is_that_of_the_pods() -> None:
    spec = JOB["spec"]
    (shard,) = [one for one in spec["template"]["spec"]["containers"][0]["args"] if one.startswith("--shard=")]
    assert spec["completionMode"] == "Indexed"
    assert shard == f"--shard=$(JOB_COMPLETION_INDEX)/{spec['completions']}"


def test_cron_job_runs_the_job() -> None:
    assert CRON_JOB["spec"]["jobTemplate"]["spec"] == JOB["spec"]


@pytest.mark.parametrize("path", ["kuberay/rayjob.yaml", "kuberay/rayservice.yaml"])
def test_nodes_of_a_ray_cluster_have_the_same_image_and_files(path: str) -> None:
    spec = manifest(path)["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    containers = [one["containers"][0] for one in pods]
    for shared in (
        [one["image"] for one in containers],
        [one["volumeMounts"] for one in containers],
        [one["volumes"] for one in pods],
    ):
        assert all(one == shared[0] for one in shared)


def test_ports_of_ray_serve_are_those_of_its_service() -> None:
    spec = manifest("kuberay/rayservice.yaml")["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    ports = {one["name"]: one["targetPort"] for one in spec["serveService"]["spec"]["ports"]}
    assert ports == {"serve": config["http_options"]["port"], "serve-grpc": config["grpc_options"]["port"]}


def test_kserve_maps_its_first_port_to_http_and_recognizes_grpc() -> None:
    (container,) = manifest("kserve/servingruntime.yaml")["spec"]["containers"]
    http, grpc = container["ports"]
    listen = {one["name"]: one["value"] for one in container["env"]}
    assert http["containerPort"] == int(listen["POLYHEAD_HTTP_LISTEN"].rpartition(":")[2])
    assert grpc["containerPort"] == int(listen["POLYHEAD_LISTEN"].rpartition(":")[2])
    assert "h2c" in grpc["name"]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """Returns what ``polyhead bulk`` reads from its arguments; fails on an unknown flag."""
    return bulk.make_context("bulk", arguments).params


@pytest.mark.parametrize("index", range(JOB["spec"]["completions"]))
def test_arguments_of_the_job_are_those_of_the_command(index: int) -> None:
    (container,) = JOB["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["polyhead", "bulk"]
    found = parsed(expanded(container, JOB_COMPLETION_INDEX=str(index), JOB_NAME="polyhead-bulk"))
    assert found["inputs"] == ("/data/in/*.parquet",)
    assert found["output"] == Path("/data/out/polyhead-bulk")
    assert found["bundle"] == Path("/bundles/tickets-1")
    assert found["shard"] == (index, JOB["spec"]["completions"])


def expanded(container: dict[str, Any], **values: str) -> list[str]:
    """Returns the arguments with variables as Kubernetes expands them; each is one that the pod has."""
    labels = {"JOB_NAME": "metadata.labels['batch.kubernetes.io/job-name']"}
    for one in container["env"]:
        assert one["valueFrom"]["fieldRef"]["fieldPath"] == labels[one["name"]]
    known = {"JOB_COMPLETION_INDEX", *(one["name"] for one in container["env"])}
    arguments = []
    for argument in container["args"]:
        assert set(re.findall(r"\$\((\w+)\)", argument)) <= known
        arguments.append(re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], argument))
    return arguments


def test_job_ends_at_the_exit_code_of_what_is_wrong_again_and_again() -> None:
    (rule,) = [one for one in JOB["spec"]["podFailurePolicy"]["rules"] if one["action"] == "FailJob"]
    assert rule["onExitCodes"]["values"] == [EXIT_USAGE]
    assert {EXIT_FAILED, EXIT_INTERRUPTED}.isdisjoint(rule["onExitCodes"]["values"])


def test_entry_point_of_the_ray_job_is_the_command_with_the_engine_for_ray() -> None:
    program, command, *arguments = shlex.split(manifest("kuberay/rayjob.yaml")["spec"]["entrypoint"])
    assert (program, command) == ("polyhead", "bulk")
    found = parsed(arguments)
    assert found["engine"] == "ray"
    assert found["inputs"] == ("/data/in/*.parquet",)
    assert (found["limit"], found["shard"], found["target"]) == (None, (0, 1), None)


@pytest.mark.parametrize(
    ("path", "target"),
    [("kubernetes/bulk/job.yaml", "bulk"), ("kuberay/rayjob.yaml", "ray"), ("kuberay/rayservice.yaml", "ray")],
)
def test_image_has_a_target_and_a_lock(path: str, target: str) -> None:
    assert f"image: registry.example.com/polyhead-{target}:{version('polyhead')}\n" in (DEPLOY / path).read_text()
    dockerfile = (DEPLOY / "container/Dockerfile").read_text()
    assert f" AS {target}\n" in dockerfile
    assert f"deploy/install.sh {target} " in dockerfile
    assert (ROOT / f"locks/{target}.txt").exists()

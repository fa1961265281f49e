"""Each value of the chart changes what it describes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.rendered_chart import CHART, environment, objects, pod, run, server, template, volume

EGRESS = [{"ports": [{"port": 443}]}]
URI = {"persistentVolumeClaim": "", "digest": "0" * 64, "uri": {"source": "s3://models/t"}}


def test_image_digest_replaces_the_tag() -> None:
    image = {"repository": "r/p", "tag": "1", "digest": "sha256:" + "0" * 64}
    assert server(template({"image": image}))["image"] == f"r/p@{image['digest']}"
    assert server(template({"image": image | {"digest": ""}}))["image"] == "r/p:1"


def test_bundle_from_an_image_is_a_volume_of_the_kubelet() -> None:
    reference = "r/b@sha256:" + "0" * 64
    bundle = {"path": "", "persistentVolumeClaim": "", "image": {"reference": reference}}
    rendered = template({"bundle": bundle})
    assert volume(rendered, "bundles")["image"] == {"reference": reference, "pullPolicy": "IfNotPresent"}
    assert server(rendered)["args"] == ["/bundles"]


def test_bundle_from_a_uri_is_downloaded_and_verified() -> None:
    rendered = template({"bundle": URI, "networkPolicy": {"egress": EGRESS}})
    download, verify = pod(rendered)["initContainers"]
    assert download["args"] == ["s3://models/t", "/bundles/tickets-1"]
    assert server(rendered)["args"] == ["/bundles/tickets-1"]
    assert verify["command"][-2:] == ["/bundles/tickets-1", "0" * 64]
    assert verify["image"] == server(rendered)["image"]
    assert volume(rendered, "bundles")["emptyDir"] == {"sizeLimit": "2Gi"}
    assert rendered["NetworkPolicy"]["spec"]["egress"] == EGRESS


def test_several_models_have_names_and_digests_of_their_own() -> None:
    models = [{"name": "tickets", "path": "tickets/7"}, {"name": "reviews", "path": "r-3", "digest": "1" * 64}]
    rendered = template({"bundle": {"path": "", "models": models}})
    assert server(rendered)["args"] == ["tickets=/bundles/tickets/7", "reviews=/bundles/r-3"]
    (verify,) = pod(rendered)["initContainers"]
    assert verify["command"][3:] == ["/bundles/r-3", "1" * 64]
    without = template({"bundle": {"path": "", "models": models[:1]}})
    assert "initContainers" not in pod(without)


@pytest.mark.model
def test_init_container_accepts_the_pinned_bundle_only(demo_bundle: Path) -> None:
    digest = json.loads((demo_bundle / "bundle.json").read_text())["digest"]
    for pinned, accepted in ((digest, True), ("0" * 64, False)):
        (verify,) = pod(template({"bundle": {"digest": pinned}}))["initContainers"]
        program, *arguments = verify["command"]
        assert program == "python"
        arguments = [str(demo_bundle) if one == "/bundles/tickets-1" else one for one in arguments]
        result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        assert (result.returncode == 0) is accepted, result.stderr
        assert accepted or f"has the digest {digest}, and the chart's values state {pinned}" in result.stderr


def test_tls_replaces_plaintext_and_its_probes() -> None:
    rendered = template({"tls": {"secretName": "t", "serverName": "p.example.com"}})
    assert "POLYHEAD_ALLOW_PLAINTEXT" not in environment(rendered)
    assert environment(rendered)["POLYHEAD_TLS_CERT"] == "/tls/tls.crt"
    probe = ["polyhead", "info", "--ca", "/tls/ca.crt", "--server-name", "p.example.com"]
    assert server(rendered)["readinessProbe"]["exec"]["command"] == probe
    assert server(rendered)["livenessProbe"]["tcpSocket"] == {"port": "grpc"}
    # Only the server's group can read its key.
    assert volume(rendered, "tls")["secret"] == {"secretName": "t", "defaultMode": 0o440}
    assert pod(rendered)["securityContext"]["fsGroup"] == 10001
    ports = {one["name"]: one.get("appProtocol") for one in rendered["Service"]["spec"]["ports"]}
    assert ports == {"grpc": None, "http": "https", "metrics": None}


def test_mutual_tls_gives_the_probes_a_certificate() -> None:
    tls = {"secretName": "t", "serverName": "p", "clientCa": True, "probeSecretName": "c"}
    rendered = template({"tls": tls})
    assert environment(rendered)["POLYHEAD_TLS_CLIENT_CA"] == "/tls/ca.crt"
    assert environment(rendered)["POLYHEAD_CERT"] == "/probe-tls/tls.crt"
    assert volume(rendered, "probe-tls")["secret"]["secretName"] == "c"


def test_api_keys_come_from_a_secret() -> None:
    rendered = template({"apiKeys": {"secretName": "k", "allowPlaintext": True}})
    assert environment(rendered)["POLYHEAD_API_KEYS"] == "/api-keys/keys.toml"
    assert environment(rendered)["POLYHEAD_ALLOW_PLAINTEXT_KEYS"] == "true"
    tls = {"secretName": "t", "serverName": "p"}
    rendered = template({"apiKeys": {"secretName": "k", "probeSecretName": "q"}, "tls": tls})
    assert "POLYHEAD_ALLOW_PLAINTEXT_KEYS" not in environment(rendered)
    assert environment(rendered)["POLYHEAD_API_KEY"] == {"secretKeyRef": {"name": "q", "key": "key"}}


def test_settings_of_the_server_become_variables() -> None:
    flags = {"log-format": "json", "max-queue-tokens": 2000000, "max-queue-s": 2.5, "no-reflection": True}
    variables = environment(template({"workers": 4, "dialects": ["polyhead", "oip"], "flags": flags}))
    assert variables["POLYHEAD_WORKERS"] == "4"
    assert variables["POLYHEAD_DIALECTS"] == "polyhead,oip"
    assert variables["POLYHEAD_LOG_FORMAT"] == "json"
    assert variables["POLYHEAD_NO_REFLECTION"] == "true"
    assert variables["POLYHEAD_MAX_QUEUE_TOKENS"] == "2000000"
    assert variables["POLYHEAD_MAX_QUEUE_S"] == "2.5"


def test_grace_period_follows_the_drain() -> None:
    rendered = template({"drain": {"timeoutSeconds": 90}})
    assert environment(rendered)["POLYHEAD_DRAIN_TIMEOUT_S"] == "90"
    assert pod(rendered)["terminationGracePeriodSeconds"] == 100


def test_http_and_metrics_can_be_disabled() -> None:
    rendered = template({"http": {"enabled": False}, "metrics": {"enabled": False}})
    assert [one["name"] for one in server(rendered)["ports"]] == ["grpc"]
    assert [one["name"] for one in rendered["Service"]["spec"]["ports"]] == ["grpc"]
    assert {"POLYHEAD_HTTP_LISTEN", "POLYHEAD_METRICS_LISTEN"}.isdisjoint(environment(rendered))
    assert [one["ports"] for one in rendered["NetworkPolicy"]["spec"]["ingress"]] == [[{"port": "grpc"}]]


def test_keda_scales_by_the_expected_wait_of_this_release() -> None:
    keda = {"enabled": True, "targetWaitSeconds": "0.5"}
    rendered = template({"autoscaling": {"keda": keda}}, "--namespace", "search")
    cpu, wait = rendered["ScaledObject"]["spec"]["triggers"]
    assert cpu["metadata"]["value"] == "70"
    assert wait["metadata"]["threshold"] == "0.5"
    query = 'avg(max by (instance) (polyhead_expected_wait_seconds{namespace="search",service="polyhead"}))'
    assert wait["metadata"]["query"] == query
    assert "replicas" not in rendered["Deployment"]["spec"]
    assert (
        template({"autoscaling": {"keda": {"enabled": True, "query": "vector(1)"}}})["ScaledObject"]["spec"][
            "triggers"
        ][1]["metadata"]["query"]
        == "vector(1)"
    )


def test_objects_that_clusters_may_not_allow_can_be_left_out() -> None:
    rendered = template({"podDisruptionBudget": {"enabled": False}, "networkPolicy": {"enabled": False}})
    assert set(rendered) == {"Deployment", "Service"}


def test_service_with_a_cluster_ip_for_meshes() -> None:
    annotations = {"balancer.linkerd.io/failure-accrual": "consecutive"}
    service = template({"service": {"headless": False, "annotations": annotations}})["Service"]
    assert "clusterIP" not in service["spec"]
    assert service["metadata"]["annotations"] == annotations


def test_scheduling_and_additions_reach_the_pods() -> None:
    values = {
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "serviceAccountName": "account",
        "imagePullSecrets": [{"name": "registry"}],
    }
    rendered = template(
        values
        | {"podLabels": {"team": "x"}, "podAnnotations": {"note": "y"}, "extraEnv": [{"name": "TZ", "value": "UTC"}]}
    )
    expected = {name: value for name, value in values.items() if value}
    assert {name: value for name, value in pod(rendered).items() if name in values} == expected
    metadata = rendered["Deployment"]["spec"]["template"]["metadata"]
    assert metadata["labels"]["team"] == "x"
    assert metadata["annotations"] == {"note": "y"}
    assert environment(rendered)["TZ"] == "UTC"


def test_two_releases_of_a_namespace_do_not_share_pods() -> None:
    names = {}
    for release in ("one", "two"):
        result = run("helm", "template", release, str(CHART))
        deployment, service = (objects(result.stdout)[kind] for kind in ("Deployment", "Service"))
        assert deployment["metadata"]["name"] == service["metadata"]["name"] == f"{release}-polyhead"
        names[release] = service["spec"]["selector"]
        assert names[release].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert names["one"] != names["two"]

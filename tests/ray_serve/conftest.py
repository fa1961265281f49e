"""A plain server and Ray Serve with the same bundle and the same API keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from polyhead_server.security import api_keys

from bench.harness.servers import free_port, serving

if TYPE_CHECKING:
    from bench.harness.ray_serve import RayServe

# `make test-ray` builds it; the environment of these tests has no PyTorch to do so.
BUNDLE = Path(os.environ.get("POLYHEAD_TEST_BUNDLE", "build/demo/bundle")).absolute()
# Ray's proxy in Python, and HAProxy in front of the servers that the replicas have then.
INGRESSES = {"python": {}, "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"}}


@dataclass(frozen=True)
class Plain:
    """A server without Ray.

    Attributes:
        target: HOST:PORT of its gRPC.
        http_target: HOST:PORT of its HTTP.
        keys: The key file.
        key: A key for everything.
        info_key: A key that does not allow inference.
    """

    target: str
    http_target: str
    keys: Path
    key: str
    info_key: str

    def metadata(self) -> list[tuple[str, str]]:
        """Returns the metadata of a call."""
        return [("authorization", f"Bearer {self.key}")]


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plain]:
    if not (BUNDLE / "bundle.json").exists():
        pytest.skip(f"there is no bundle in {BUNDLE}; run `make test-ray`")
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    key, info_key = api_keys.create(keys, "all", ["infer", "info"], None), api_keys.create(keys, "info", ["info"], None)
    http_target = f"127.0.0.1:{free_port()}"
    with serving(BUNDLE, "--http-listen", http_target, "--api-keys", str(keys)) as target:
        yield Plain(target, http_target, keys, key, info_key)


@pytest.fixture(scope="session", params=INGRESSES)
def cluster(
    request: pytest.FixtureRequest, plain: Plain, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RayServe]:
    """Ray Serve with two replicas, behind each kind of ingress."""
    from bench.harness.ray_serve import ray_serving

    arguments = {
        "bundle": str(BUNDLE),
        "api_keys": str(plain.keys),
        "allow_plaintext_keys": True,
        "min_replicas": 2,
        "max_replicas": 2,
        "cpus_per_replica": 0.5,
        # A rolling update waits for streams to end.
        "max_stream_age_s": 5.0,
    }
    with ray_serving(tmp_path_factory.mktemp(request.param), arguments, INGRESSES[request.param]) as running:
        yield running

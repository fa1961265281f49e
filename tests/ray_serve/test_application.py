"""The application and its config file, as Ray Serve reads them; starts no cluster."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from polyhead_server.ray_serve.arguments import Arguments

with warnings.catch_warnings():
    # Ray's own, of pydantic.
    warnings.simplefilter("ignore", DeprecationWarning)
    pytest.importorskip("ray.serve", reason="Ray is not installed; run `make test-ray`")
    from polyhead_server.ray_serve import application
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve._private.grpc_util import gRPCGenericServer
    from ray.serve.config import gRPCOptions
    from ray.serve.schema import ServeDeploySchema

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIGS = {
    "serve.yaml": yaml.safe_load((DEPLOY / "ray/serve.yaml").read_text()),
    "rayservice.yaml": yaml.safe_load(
        yaml.safe_load((DEPLOY / "kuberay/rayservice.yaml").read_text())["spec"]["serveConfigV2"]
    ),
}


def build(**values: Any) -> Any:
    """Builds the application as ``serve run`` does, and returns its deployment."""
    built = call_user_app_builder_with_args_if_necessary(application, {"bundle": "/models/demo", **values})
    return built._bound_deployment


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_config_file_is_valid(content: dict[str, Any]) -> None:
    config = ServeDeploySchema.model_validate(content)
    (app,) = config.applications
    Arguments.model_validate(app.args)
    assert app.import_path == "polyhead_server.ray_serve:application"
    deployment = build(**app.args)
    assert {one.name for one in app.deployments} <= {deployment.name}
    # Ray imports the function that the file names.
    (servicer,) = gRPCOptions(**config.grpc_options.model_dump()).grpc_servicer_func_callable
    assert servicer.__name__ == "add_inference_service"


async def test_ray_s_server_routes_every_method() -> None:
    from polyhead_server.ray_serve.proxy import add_inference_service

    routed = []
    server = gRPCGenericServer(lambda service_method, streaming_type: routed.append(service_method))
    add_inference_service(None, server)
    assert {name.rpartition("/")[2] for name in routed} == {
        *("Analyze", "GetModelInfo", "StreamAnalyze", "StreamEmbed", "StreamClassify", "StreamSentiment"),
        *("Check", "Watch"),
    }


def test_arguments_become_options_of_the_deployment() -> None:
    deployment = build(
        min_replicas="2", max_replicas="5", cpus_per_replica="1.5", max_streams="10", max_queue_tokens="1280"
    )
    assert (deployment.name, deployment.ray_actor_options["num_cpus"]) == ("polyhead", 1.5)
    assert deployment.ray_actor_options["runtime_env"] == {"env_vars": {"OPENBLAS_NUM_THREADS": "1"}}
    assert deployment.max_ongoing_requests == deployment.max_queued_requests == 20
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 5)
    assert scaling.policy.policy_kwargs == {"target_queued_tokens": 20_000}
    # Streams end, and calls are answered, before Ray kills the replica.
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 90


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ValueError, match="bundel\n  Extra inputs are not permitted"):
        build(bundel="/x")

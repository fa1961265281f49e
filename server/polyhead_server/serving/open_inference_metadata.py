"""The Open Inference Protocol's documents about the server and its model, as both of its transports answer them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from .backend import Backend
from .open_inference import VERSION, ModelView
from .open_inference_tensors import TensorSpec

_CONFIGURED_TYPES = {"FP32": "TYPE_FP32", "BYTES": "TYPE_STRING", "BOOL": "TYPE_BOOL"}
_PLATFORM = "polyhead"


def server_metadata(*extensions: str) -> dict[str, Any]:
    """Describes the server.

    Args:
        extensions: Those of the transport alone.
    """
    common = ["model_configuration", "statistics", "model_repository(index)"]
    return {"name": _PLATFORM, "version": metadata.version("polyhead"), "extensions": [*common, *extensions]}


def model_metadata(backend: Backend, view: ModelView) -> dict[str, Any]:
    """Describes the tensors of the model."""

    def described(spec: TensorSpec) -> dict[str, Any]:
        return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}

    return {
        "name": backend.served_name(),
        "versions": [VERSION],
        "platform": _PLATFORM,
        "inputs": [described(spec) for spec in view.inputs],
        "outputs": [described(spec) for spec in view.outputs],
    }


def model_config(backend: Backend, view: ModelView) -> dict[str, Any]:
    """Describes the model as Triton would; the labels of each head stand in the parameters, as JSON."""

    def configured(spec: TensorSpec) -> dict[str, Any]:
        # Without the batch dimension, which ``max_batch_size`` stands for.
        return {"name": spec.name, "data_type": _CONFIGURED_TYPES[spec.datatype], "dims": list(spec.shape[1:])}

    return {
        "name": backend.served_name(),
        "platform": _PLATFORM,
        "backend": _PLATFORM,
        "max_batch_size": backend.max_items,
        "input": [configured(spec) for spec in view.inputs],
        "output": [configured(spec) for spec in view.outputs],
        "dynamic_batching": {},
        "parameters": {
            f"{head}_labels": {"string_value": json.dumps(labels, ensure_ascii=False)}
            for head, labels in view.labels.items()
        },
    }


def model_statistics(backends: Iterable[Backend]) -> dict[str, Any]:
    """Returns the counters of these models in this process since its start."""
    return {"model_stats": [_statistics(backend) for backend in backends]}


def _statistics(backend: Backend) -> dict[str, Any]:
    """Returns the counters of a model.

    perf_analyzer requires the three counts of ``compute_*`` to be equal, and ends otherwise. Input and output are
    converted within the time of the other stages.
    """
    stats = backend.statistics()
    count = stats.texts
    computed = {"count": count, "ns": int(stats.batch_s * 1e9)}
    return {
        "name": backend.served_name(),
        "version": VERSION,
        "inference_count": count,
        "execution_count": stats.batches,
        "inference_stats": {
            "success": computed,
            "fail": {"count": stats.errors, "ns": 0},
            "queue": {"count": count, "ns": int(stats.queue_s * 1e9)},
            "compute_input": {"count": count, "ns": 0},
            "compute_infer": computed,
            "compute_output": {"count": count, "ns": 0},
        },
    }


def repository_index(backends: Iterable[Backend]) -> list[dict[str, Any]]:
    """Lists these models."""
    return [
        {"name": backend.served_name(), "version": VERSION, "state": "READY" if backend.ready else "UNAVAILABLE"}
        for backend in backends
    ]

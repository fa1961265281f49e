"""Values of the templates: the result files, and figures that are derived from them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

Report = dict[str, Any]

# Result files that `make bench` and `make compare` write, in the order of the page.
REPEATABLE = (
    "throughput_int8",
    "throughput_fp32",
    "throughput_long",
    "comparison",
    "protocols",
    "bulk",
    "bulk_libraries",
    "bulk_memory",
    "bulk_kills",
    "bulk_ray",
    "latency_breakdown",
    "workers",
    "scaling",
    "startup",
)
GPU_ENGINES = {"PyTorch": "gpu", "onnxruntime": "gpu_onnx"}


def context(reports: Mapping[str, Report]) -> dict[str, Any]:
    """Returns the values that the templates use; ``reports`` holds the result files by name."""
    return {
        "reports": reports,
        "commands": [reports[name]["command"] for name in REPEATABLE if name in reports],
        "provenance": provenance,
        "upper_bound_range": upper_bound_range,
        "relative_to_polyhead": relative_to_polyhead,
        "gpu": gpu_tables({title: reports[name] for title, name in GPU_ENGINES.items() if name in reports}),
    }


def provenance(report: Report) -> dict[str, Any]:
    """Returns the machine, versions, rounds and command of a result file, ready to print."""
    cpu = report.get("cpu")
    # Each extension contains those before it.
    extension = cpu if isinstance(cpu, str) else cpu[-1] if cpu else None
    return {
        "command": report["command"],
        "program": shlex.split(report["command"])[2],
        "date": report["date"],
        "commit": report.get("commit", "")[:12],
        "cores": report.get("cores"),
        "cpu": extension,
        "versions": ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items()),
        "variant": report.get("variant"),
        "rounds": report.get("rounds"),
    }


def upper_bound_range(report: Report) -> list[float]:
    """Returns the median of the medians, the lowest and the highest upper bound of a throughput report."""
    bounds: Sequence[Sequence[float]] = [one["upper_bound"] for one in report["loads"].values()]
    medians = sorted(median for median, _, _ in bounds)
    return [medians[len(medians) // 2], min(low for _, low, _ in bounds), max(high for _, _, high in bounds)]


def relative_to_polyhead(report: Report, loads: Sequence[str]) -> dict[str, list[float]]:
    """Returns the median throughput of each server, divided by polyhead's, for each load."""
    servers = report["servers"]
    own = [servers["polyhead"]["loads"][load]["items_per_s"][0] for load in loads]
    return {
        name: [one["loads"][load]["items_per_s"][0] / reference for load, reference in zip(loads, own, strict=True)]
        for name, one in servers.items()
    }


def gpu_tables(reports: Mapping[str, Report]) -> dict[str, Any]:
    """Returns the tables of the GPU section by engine and variant."""
    variants = [
        (title, name, figures) for title, report in reports.items() for name, figures in report["variants"].items()
    ]
    batches: dict[str, dict[str, list[float]]] = {}
    for title, name, figures in variants:
        for shape, one in figures["batches"].items():
            row = batches.setdefault(shape, {})
            if title == "PyTorch":
                row[f"{name}, plain PyTorch"] = [one["pytorch_ms"]] * 3
            row[f"{name}, {title} engine"] = [one["engine_ms"]] * 3
    return {
        "reports": reports,
        "batches": {shape: dict(sorted(row.items())) for shape, row in batches.items()},
        "serving": {
            f"{title}, {name}: {load}": row
            for title, name, figures in variants
            for load, row in figures["serving"].items()
        },
        "variants": [
            {
                "engine": title,
                "variant": name,
                "upper_bound": figures["upper_bound"]["items_per_s"],
                "from_cpu": figures["accuracy"]["max_difference_from_cpu_fp32"],
                "single_vs_batched": figures["accuracy"]["max_difference_single_vs_batched"],
            }
            for title, name, figures in variants
        ],
    }

"""Throughput of fronts on machines with more cores and with a GPU, simulated from the measured costs of few cores.

    python -m bench.server.fronts_simulation bench/results/fronts.json --output bench/results/fronts_simulation.json

Takes the CPU time per text of fronts, of the event loop of the engine process, and of the loop of one process that does
everything, from a result of bench.server.fronts with an engine that answers at once, and divides each into a cost per
message and one per text. bench/server/interpreter_simulation.py describes the model and its limits. The costs of a
batch and of a token are flags: of int8 on one core, and of a GPU in fp16, which computes one batch at a time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser

from .interpreter_simulation import CORES, IN_FLIGHT_PER_CORE, Costs, Server

FRONTS = (0, 1, 2, 4, 8, 16)
# Texts per message of the loads of bench.server.fronts.
MESSAGES = {"unary, 1 item": 1, "stream, 32 items": 32}
_GPU_IN_FLIGHT = 4096


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("measured", type=Path, help="result of bench.server.fronts with 0 and 1 fronts")
    parser.add_argument("--batch-us", type=float, default=300.0, help="Python per batch (default: 300)")
    parser.add_argument("--compute-us", type=float, default=1000.0, help="one core per batch (default: 1000)")
    parser.add_argument("--token-us", type=float, default=95.0, help="one core per token (default: 95)")
    parser.add_argument("--max-batch-tokens", type=int, default=256, help="in tokens, on the CPU (default: 256)")
    parser.add_argument("--gpu-compute-us", type=float, default=300.0, help="a GPU per batch (default: 300)")
    parser.add_argument("--gpu-token-us", type=float, default=0.27, help="a GPU per token (default: 0.27)")
    parser.add_argument("--gpu-batch-tokens", type=int, default=8192, help="in tokens, on the GPU (default: 8192)")
    parser.add_argument("--mean-tokens", type=int, default=39, help="mean tokens per text (default: 39)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    measured = json.loads(arguments.measured.read_text())
    report = {
        **results.provenance(),
        "python_us": {name: python_costs(measured, name == "one process") for name in ("one process", "fronts")},
        "batch_us": {
            "Python": arguments.batch_us,
            "CPU": [arguments.compute_us, arguments.token_us],
            "GPU": [arguments.gpu_compute_us, arguments.gpu_token_us],
        },
        "cpu_items_per_s": on_cpu(measured, arguments),
        "gpu_items_per_s": on_gpu(measured, arguments),
    }
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)


def python_costs(measured: Mapping[str, Any], one_process: bool) -> dict[str, float]:
    """Returns microseconds of Python per message and per text, from the times per text at 1 and at 32 texts a message.

    Args:
        measured: Result of bench.server.fronts.
        one_process: Whether of one process; otherwise of one front and its engine process.
    """

    def per_message(part: str) -> tuple[float, float]:
        alone, together = (measured["loads"][load]["0" if one_process else "1"][part][0] for load in MESSAGES)
        message = (alone - together) / (1 - 1 / MESSAGES["stream, 32 items"])
        return message, alone - message

    message, item = per_message("engine_loop_us" if one_process else "fronts_us")
    engine_message, engine_item = (0.0, 0.0) if one_process else per_message("engine_loop_us")
    found = {"message": message, "item": item, "engine_message": engine_message, "engine_item": engine_item}
    return {name: round(us, 1) for name, us in found.items()}


def on_cpu(measured: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, int]]]:
    """Returns texts per second by load, cores and fronts; each front takes a core from those that compute."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for load, items in MESSAGES.items():
        for cores in CORES:
            rates = {}
            for fronts in (count for count in FRONTS if count < cores):
                costs = Costs(
                    batch=arguments.batch_us,
                    compute=arguments.compute_us,
                    token=arguments.token_us,
                    **python_costs(measured, one_process=not fronts),
                )
                shape = (cores - fronts, items, arguments.mean_tokens, arguments.max_batch_tokens)
                server = Server(costs, *shape, in_flight=cores * IN_FLIGHT_PER_CORE, fronts=fronts)
                rates[str(fronts)] = round(server.items_per_s())
            found.setdefault(load, {})[str(cores)] = rates
    return found


def on_gpu(measured: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Returns texts per second by load and fronts, with a GPU that computes one batch at a time."""
    found: dict[str, dict[str, int]] = {}
    for load, items in MESSAGES.items():
        for fronts in FRONTS:
            costs = Costs(
                batch=arguments.batch_us,
                compute=arguments.gpu_compute_us,
                token=arguments.gpu_token_us,
                **python_costs(measured, one_process=not fronts),
            )
            shape = (1, items, arguments.mean_tokens, arguments.gpu_batch_tokens)
            server = Server(costs, *shape, in_flight=_GPU_IN_FLIGHT, fronts=fronts)
            found.setdefault(load, {})[str(fronts)] = round(server.items_per_s())
    return found


if __name__ == "__main__":
    main()

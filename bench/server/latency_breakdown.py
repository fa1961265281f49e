"""Latency breakdown: CPU time per text by thread of the server, and the stages of a single call.

    python -m bench.server.latency_breakdown --bundle build/demo/bundle --output bench/results/latency_breakdown.json

CPU time: under closed-loop load, microseconds per text of the event loop, the compute threads, the other threads
(gRPC's and the tokenizer's) and the client, from /proc; onnxruntime_us is the onnxruntime upper bound for the same
texts. Stages: with one text in flight, the medians of the server's own timings, of the latency that the client sees,
and of their difference, which is gRPC in both directions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_server.settings import usable_cores
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.processes import find_server, thread_cpu_s
from bench.harness.results import Figures
from bench.harness.servers import serving
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP, first_turn, read_texts
from bench.harness.upper_bound import UpperBound
from bench.loadgen.launch import figures_of, start_load
from bench.loadgen.loops import WARM_UP_S

from .throughput import LOADS

MEASURED_LOADS = (
    "unary, 1 item, 64 in flight",
    "client, 64 in flight",
    "stream, 8 items, 64 in flight",
    "stream, 32 items, 256 in flight",
)
STAGES = ("tokenization", "queue", "compute", "total")
# Calls of one text that are timed.
_CALLS = 300


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to serve")
    parser.add_argument("--variant", default="int8", help="variant to serve (default: int8)")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds per load (default: 5)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    texts = first_turn(read_texts(arguments.texts))
    upper_bound = UpperBound(arguments.bundle, arguments.variant, texts)
    loads: dict[str, Figures] = {}
    with serving(arguments.bundle, "--engine", "onnx", "--device", "cpu", "--variant", arguments.variant) as target:
        for name in tqdm(MEASURED_LOADS, unit="load"):
            onnxruntime_us = 1e6 * usable_cores() / upper_bound.items_per_s(arguments.seconds)
            loads[name] = {"onnxruntime_us": onnxruntime_us, **cpu_per_text(target, arguments, LOADS[name])}
        stages = time_single_calls(target, texts[:_CALLS], upper_bound)
    report = {
        **results.provenance(),
        "variant": arguments.variant,
        "cpu_us_per_text": {name: {key: round(one) for key, one in load.items()} for name, load in loads.items()},
        "single_call_us": {name: round(one) for name, one in stages.items()},
    }
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)


def cpu_per_text(target: str, arguments: argparse.Namespace, flags: Sequence[str]) -> Figures:
    """Returns CPU microseconds per text of the event loop, the compute threads, other threads and the client."""
    pid = find_server(target)
    client = start_load(target, arguments.texts, arguments.seconds, flags, lambda: thread_cpu_s(pid)[pid])
    before, began = thread_cpu_s(pid), time.perf_counter()
    time.sleep(arguments.seconds - WARM_UP_S)
    used = {tid: seconds - before.get(tid, 0.0) for tid, seconds in thread_cpu_s(pid).items()}
    wall_s = time.perf_counter() - began
    figures = figures_of(client)
    event_loop_s = used.pop(pid)
    ranked = sorted(used.values(), reverse=True)
    us_per_text = 1e6 / (wall_s * figures["items_per_s"])
    return {
        "event_loop_us": us_per_text * event_loop_s,
        "compute_us": us_per_text * sum(ranked[: usable_cores()]),
        "other_threads_us": us_per_text * sum(ranked[usable_cores() :]),
        "client_us": 1e6 * figures["client_cores"] / figures["items_per_s"],
        "items_per_s": figures["items_per_s"],
    }


def time_single_calls(target: str, texts: Sequence[str], upper_bound: UpperBound) -> Figures:
    """Returns the median microseconds of each stage over sequential calls of one text."""
    seen: dict[str, list[float]] = {name: [] for name in (*STAGES, "client")}
    with grpc.insecure_channel(target) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        for text in texts:
            options = item_pb2.ItemOptions(include_timings=True)
            request = pb2.AnalyzeRequest(items=[item_pb2.Item(text=text)], options=options)
            began = time.perf_counter()
            (answer,) = stub.Analyze(request).answers
            seen["client"].append(1e6 * (time.perf_counter() - began))
            timings: Any = answer.result.timings
            for name in STAGES:
                seen[name].append(getattr(timings, name).ToNanoseconds() / 1000)
    medians = {name: statistics.median(values) for name, values in seen.items()}
    onnxruntime_us = 1000 * upper_bound.single_text_ms()
    return medians | {"onnxruntime": onnxruntime_us, "grpc": medians["client"] - medians["total"]}


if __name__ == "__main__":
    main()

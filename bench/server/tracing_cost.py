"""CPU time of the server per unary call with no, some and all calls traced, with an engine that answers at once.

    python -m bench.server.tracing_cost --bundle build/demo/bundle --output bench/results/tracing_cost.json

Four servers take turns: without --otlp-endpoint, and with a sampler that traces none, one in twenty and all of the
calls. The collector is this process, whose CPU time does not count. ratio is the CPU time of the server's process
divided by that of the first server in the same round; with a model on the same cores, the difference stays the same and
the ratio is closer to 1.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.results import Figures
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP

from .front_cost import LOADS, cpu_per_text, instant_server

OFF = "off"
# Share of the calls that are traced, by the name in the result file.
SHARES = {"none": "0", "one in twenty": "0.05", "all": "1"}


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Receives traces and drops them."""

    def Export(  # noqa: N802
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Receives spans."""
        del request, context
        return trace_service_pb2.ExportTraceServiceResponse()


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to serve")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--load", choices=LOADS, default="unary", help="load of front_cost (default: unary)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all servers (default: 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds per server (default: 5)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    found: dict[str, list[Figures]] = {name: [] for name in (OFF, *SHARES)}
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(collector())
        servers = {OFF: stack.enter_context(instant_server(arguments.bundle))}
        for name, share in SHARES.items():
            sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": share}
            servers[name] = stack.enter_context(
                instant_server(arguments.bundle, "--otlp-endpoint", endpoint, environment=sampler)
            )
        for _ in tqdm(range(arguments.rounds), unit="round"):
            for name, (process_id, targets) in servers.items():
                figures = cpu_per_text(process_id, targets, arguments.load, arguments)
                base = found[OFF][-1]["process_us"] if name != OFF else figures["process_us"]
                found[name].append({**figures, "ratio": figures["process_us"] / base})
    report = {
        **results.provenance(),
        "load": arguments.load,
        "rounds": arguments.rounds,
        "shares": {name: results.spread_all(rounds) for name, rounds in found.items()},
    }
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """Runs a collector in threads of this process; yields its URL."""
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


if __name__ == "__main__":
    main()

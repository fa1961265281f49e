"""A minimal server of grpc.aio, whose CPU time is what the library itself costs.

    python -m bench.server.minimal_server --listen 127.0.0.1:50051

Answers Analyze with the result of one text and every message of StreamAnalyze with those of 32, all empty, without
reading what they contain. Serves health as well. Requires grpcio, grpcio-health-checking and uvloop.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import uvloop
from grpc_health.v1 import health, health_pb2_grpc

from bench.harness.arguments import make_parser

# AnalyzeResponse with an Answer whose ``result`` is an empty message.
_ANSWER = b"\x0a\x02\x12\x00"
_METHODS = "/polyhead.v1.InferenceService/"
_TEXTS_PER_MESSAGE = 32


class _Methods(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        unary: Any = grpc.unary_unary_rpc_method_handler(_analyze)
        stream: Any = grpc.stream_stream_rpc_method_handler(_stream_analyze)
        self._handlers = {f"{_METHODS}Analyze": unary, f"{_METHODS}StreamAnalyze": stream}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(str(handler_call_details.method))


async def _analyze(_: bytes, context: Any) -> bytes:
    del context
    return _ANSWER


async def _stream_analyze(_: Any, context: Any) -> None:
    while await context.read() is not grpc.aio.EOF:
        await context.write(_ANSWER * _TEXTS_PER_MESSAGE)


async def _serve(address: str) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Methods(),))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(parser.parse_args().listen))


if __name__ == "__main__":
    main()

"""Ray Serve: two replicas behind its gRPC proxy, ``serve.batch``, polyhead's protocol."""

from __future__ import annotations

import signal
from typing import Any

import ray
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2
from ray import serve
from ray.serve.config import gRPCOptions

from bench.comparison.graph import Graph, Setting

setting = Setting.from_environment()


@serve.deployment(num_replicas=2, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 1})
class Polyhead:
    """Runs the graph on texts."""

    def __init__(self) -> None:
        self.graph = Graph()

    async def Analyze(self, request: Any) -> Any:  # noqa: N802 - the name of the RPC
        """Answers a request with one text."""
        embedding, probabilities, sentiment = await self.run_batch(request.items[0].text)
        result = item_pb2.Result(
            embedding=item_pb2.Embedding(values=embedding.tobytes()),
            classification=item_pb2.Classification(
                scores=[item_pb2.LabelScore(probability=one) for one in probabilities.tolist()]
            ),
            sentiment=item_pb2.Sentiment(probability=float(sentiment[0])),
        )
        return pb2.AnalyzeResponse(answers=[item_pb2.Answer(result=result)])

    @serve.batch(max_batch_size=setting.batch, batch_wait_timeout_s=setting.wait_ms / 1000)  # type: ignore[untyped-decorator]
    async def run_batch(self, texts: list[str]) -> list[Any]:
        """Runs a batch."""
        return list(zip(*self.graph.run(texts), strict=True))


def main() -> None:
    """Serves until a signal."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    adder = "polyhead.v1.inference_service_pb2_grpc.add_InferenceServiceServicer_to_server"
    serve.start(
        # Ray Serve has no gRPC without HTTP; no client uses it.
        http_options={"host": "127.0.0.1", "port": setting.port + 1},
        grpc_options=gRPCOptions(port=setting.port, grpc_servicer_functions=[adder]),
    )
    serve.run(Polyhead.bind())  # type: ignore[attr-defined]
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()

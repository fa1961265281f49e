"""PyTriton: Triton Inference Server's gRPC in front of two Python callables, dynamic batching, V2 protocol."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch  # type: ignore[import-not-found]
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor  # type: ignore[import-not-found]
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]

from bench.comparison.graph import Graph, Setting

Arrays = dict[str, NDArray[np.float32]]


def instance() -> Callable[..., Arrays]:
    """Returns a callable with its own session."""
    graph = Graph()

    @batch  # type: ignore[untyped-decorator]
    def analyze(text: NDArray[np.object_]) -> Arrays:
        return dict(graph.run([one.decode() for one in text[:, 0]])._asdict())

    return analyze  # type: ignore[no-any-return]


def main() -> None:
    """Serves until a signal."""
    setting = Setting.from_environment()
    config = TritonConfig(
        grpc_address="127.0.0.1", grpc_port=setting.port, allow_http=False, allow_metrics=False, log_verbose=0
    )
    batcher = DynamicBatcher(max_queue_delay_microseconds=int(1000 * setting.wait_ms))
    with Triton(config=config) as triton:
        triton.bind(
            model_name="polyhead",
            infer_func=[instance(), instance()],
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[
                Tensor(name="embeddings", dtype=np.float32, shape=(-1,)),
                Tensor(name="probabilities", dtype=np.float32, shape=(-1,)),
                Tensor(name="sentiments", dtype=np.float32, shape=(1,)),
            ],
            config=ModelConfig(max_batch_size=setting.batch, batcher=batcher),
        )
        triton.serve()


if __name__ == "__main__":
    main()

"""MLServer: two worker processes behind its gRPC server, adaptive batching, V2 inference protocol."""

from __future__ import annotations

import asyncio

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from bench.comparison.graph import Graph, Setting


class Polyhead(MLModel):  # type: ignore[misc]
    """Runs the graph on texts."""

    async def load(self) -> bool:
        """Loads the graph in a worker."""
        self.graph = Graph()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Runs a batch that MLServer made from requests."""
        found = self.graph.run(StringCodec.decode_input(payload.inputs[0]))
        outputs = [NumpyCodec.encode_output(name, np.asarray(one)) for name, one in found._asdict().items()]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def serve() -> None:
    """Serves until a signal."""
    setting = Setting.from_environment()
    # MLServer cannot turn off HTTP; no client uses it.
    settings = Settings(
        host="127.0.0.1",
        grpc_port=setting.port,
        http_port=setting.port + 1,
        metrics_endpoint=None,
        parallel_workers=2,
        debug=False,
    )
    model = ModelSettings(
        name="polyhead",
        implementation="server.Polyhead",
        max_batch_size=setting.batch,
        max_batch_time=setting.wait_ms / 1000 if setting.batch > 1 else 0.0,
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(serve())

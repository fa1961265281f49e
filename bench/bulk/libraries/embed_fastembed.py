"""Embeds a Parquet file with fastembed: INPUT OUTPUT FOLDER, with the fp32 graph onnx/model.onnx in the folder."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType


def main() -> None:
    """Runs the command line."""
    source, target, folder = sys.argv[1:]
    name = "local/model"
    TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf=name),
        dim=384,
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding(name, specific_model_path=folder)
    began = time.perf_counter()
    table = pq.read_table(source)
    values = np.stack(list(model.embed(table["text"].to_pylist(), batch_size=64)))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).reshape(-1)), values.shape[1])
    pq.write_table(table.select(["id"]).append_column("embedding", flat), target)
    print(json.dumps({"work_s": time.perf_counter() - began}))


if __name__ == "__main__":
    main()

"""Embeds a Parquet file with Infinity's engine, without its server: INPUT OUTPUT FOLDER."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from infinity_emb import AsyncEmbeddingEngine, EngineArgs


async def embed(folder: str, texts: list[str]) -> tuple[Any, float]:
    """Returns the embeddings and the seconds they took, without loading the model."""
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=folder, engine="torch", device="cpu", model_warmup=False, bettertransformer=False)
    )
    async with engine:
        began = time.perf_counter()
        values, _ = await engine.embed(sentences=texts)
        return np.stack(values), time.perf_counter() - began


def main() -> None:
    """Runs the command line."""
    source, target, folder = sys.argv[1:]
    table = pq.read_table(source)
    values, seconds = asyncio.run(embed(folder, table["text"].to_pylist()))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).reshape(-1)), values.shape[1])
    pq.write_table(table.select(["id"]).append_column("embedding", flat), target)
    print(json.dumps({"work_s": seconds}))


if __name__ == "__main__":
    main()

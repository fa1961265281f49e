"""Embeds a Parquet file with Ray Data and sentence-transformers, as Ray's guide does: INPUT OUTPUT FOLDER."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import ray
from sentence_transformers import SentenceTransformer


class Embedder:
    """An actor that embeds batches."""

    def __init__(self, folder: str) -> None:
        self._model = SentenceTransformer(folder, local_files_only=True, device="cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Adds the embeddings to a batch."""
        values = self._model.encode(list(batch["text"]), batch_size=32, show_progress_bar=False)
        return {"id": batch["id"], "embedding": values}


def main() -> None:
    """Runs the command line."""
    source, target, folder = sys.argv[1:]
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    began = time.perf_counter()
    rows = ray.data.read_parquet(source).map_batches(
        Embedder, fn_constructor_args=(folder,), batch_size=1024, compute=ray.data.ActorPoolStrategy(size=1)
    )
    rows.write_parquet(target)
    print(json.dumps({"work_s": time.perf_counter() - began}))


if __name__ == "__main__":
    main()

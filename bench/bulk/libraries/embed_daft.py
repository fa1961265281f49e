"""Embeds a Parquet file with Daft's embed_text and sentence-transformers: INPUT OUTPUT FOLDER."""

from __future__ import annotations

import json
import sys
import time

import daft
from daft.functions import embed_text


def main() -> None:
    """Runs the command line."""
    source, target, folder = sys.argv[1:]
    began = time.perf_counter()
    rows = daft.read_parquet(source)
    embedding = embed_text(rows["text"], provider="transformers", model=folder)
    rows.select(rows["id"], embedding.alias("embedding")).write_parquet(target)
    print(json.dumps({"work_s": time.perf_counter() - began}))


if __name__ == "__main__":
    main()

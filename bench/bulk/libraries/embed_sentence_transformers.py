"""Embeds a Parquet file with sentence-transformers: INPUT OUTPUT BACKEND FOLDER.

With ONNX it is the library's own int8. Its int8 for OpenVINO requires a data set from the hub for calibration, so
OpenVINO runs the unquantized model, in the precision that it chooses for the CPU.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

_FILES = {"onnx": "onnx/model_qint8_avx512_vnni.onnx", "openvino": "openvino/openvino_model.xml"}


def open_model(backend: Any, folder: Path) -> Any:
    """Opens the model, exported and quantized first unless that is cached in its folder."""
    if backend == "torch":
        return SentenceTransformer(str(folder), local_files_only=True, device="cpu")
    if not (folder / _FILES[backend]).exists():
        made = SentenceTransformer(str(folder), backend=backend, local_files_only=True)
        made.save_pretrained(str(folder))
        if backend == "onnx":
            export_dynamic_quantized_onnx_model(made, "avx512_vnni", str(folder))
    return SentenceTransformer(
        str(folder), backend=backend, local_files_only=True, model_kwargs={"file_name": _FILES[backend]}
    )


def main() -> None:
    """Runs the command line."""
    source, target, backend, folder = sys.argv[1:]
    model = open_model(backend, Path(folder))
    began = time.perf_counter()
    table = pq.read_table(source)
    values = model.encode(table["text"].to_pylist(), batch_size=32, show_progress_bar=False)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    pq.write_table(table.select(["id"]).append_column("embedding", flat), target)
    print(json.dumps({"work_s": time.perf_counter() - began}))


if __name__ == "__main__":
    main()

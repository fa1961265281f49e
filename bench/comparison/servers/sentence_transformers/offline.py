"""sentence-transformers offline: texts per second of its ONNX backend with its own int8, embeddings only.

    python -m bench.comparison.servers.sentence_transformers.offline FOLDER texts.jsonl

FOLDER is what `polyhead-export RUN BUNDLE --format sentence-transformers` writes beside the bundle. The bundle's own
graph does not fit: the library expects token embeddings and pools them itself. Its ONNX export and its quantization for
AVX512-VNNI are cached in FOLDER. encode sorts by length; the best of the batch sizes counts. It runs in the environment
build/comparison/sentence_transformers with the repository root on PYTHONPATH.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import onnxruntime
from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

from bench.harness.arguments import make_parser
from bench.harness.texts import FORMAT_HELP, first_turn, read_texts

_QUANTIZED = "onnx/model_qint8_avx512_vnni.onnx"
_THREADS = 2


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="sentence-transformers export")
    parser.add_argument("texts", type=Path, help=FORMAT_HELP)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 64], help="(default: 8 16 32 64)")
    arguments = parser.parse_args()
    texts = first_turn(read_texts(arguments.texts))
    model = open_quantized(arguments.folder)
    rates = {}
    for size in arguments.batch_sizes:
        model.encode(texts[:size], batch_size=size)
        begun = time.perf_counter()
        model.encode(texts, batch_size=size)
        rates[size] = len(texts) / (time.perf_counter() - begun)
    best = max(rates, key=lambda size: rates[size])
    print(json.dumps({"items_per_s": rates[best], "batch_size": best}))


def open_quantized(folder: Path) -> SentenceTransformer:
    """Opens the model with its int8 graph, exporting and quantizing it first unless it is cached."""
    if not (folder / _QUANTIZED).exists():
        made = SentenceTransformer(str(folder), backend="onnx", local_files_only=True)
        made.save_pretrained(str(folder))
        export_dynamic_quantized_onnx_model(made, "avx512_vnni", str(folder))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _THREADS
    return SentenceTransformer(
        str(folder),
        backend="onnx",
        local_files_only=True,
        model_kwargs={"file_name": _QUANTIZED, "provider": "CPUExecutionProvider", "session_options": options},
    )


if __name__ == "__main__":
    main()

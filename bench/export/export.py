"""Export: duration, memory, reproducibility, gate results, corruption detection and semantic similarity.

    python -m bench.export.export runs/sst2-agnews --eval-data test.jsonl.gz --output bench/results/export.json
    python -m bench.export.export build/demo/run --flips 20                                  # a quick look

Exports the run twice with polyhead-export and every variant, and compares the two bundles byte by byte. Flips single
random bits anywhere in a copy and counts the corrupt copies that are refused; the control is the intact copy. With
--pairs, a file with the fields `a`, `b` and `score`: Spearman's correlation of the cosines with the scores, through
sentence-transformers, the trained model and the graph of every variant. The exit code is 1 if the bundles differ or a
corrupt copy was accepted.
"""

from __future__ import annotations

import filecmp
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray
from polyhead_export.eval_data import predict
from polyhead_export.layout import load_model
from polyhead_export.runners import onnx_runner, torch_runner
from polyhead_training.evaluation.similarity import correlations
from polyhead_training.tokenization import encode, load_tokenizer
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.servers import BIN
from bench.harness.texts import read

Embed = Callable[[Sequence[str]], NDArray[np.float32]]  # texts to their (texts, H) embeddings

_VARIANTS = ("int8", "int8-dynamic", "fp16")


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--eval-data", nargs="+", type=Path, default=[], help="labelled files for the gate")
    parser.add_argument("--pairs", type=Path, help="pairs of texts with a similarity score")
    parser.add_argument("--flips", type=int, default=300, help="bits to flip, one at a time (default: 300)")
    parser.add_argument("--config", type=Path, help="export configuration")
    add_output_flag(parser)
    arguments = parser.parse_args()
    flags = [f"--variant={name}" for name in _VARIANTS]
    flags += [f"--eval-data={path.resolve()}" for path in arguments.eval_data]
    flags += [f"--config={arguments.config}"] if arguments.config else []
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first", Path(folder) / "second"
        runs = [export(arguments.run, target, flags) for target in (first, second)]
        found = bundle.load(first)
        report: dict[str, Any] = {
            **results.provenance(("polyhead", "torch", "onnxruntime")),
            "run": found.manifest.name,
            "eval_data": [path.name for path in arguments.eval_data],
            "exports": runs,
            "differing_files": differing_files(first, second),
            "size_mb": {name: round(entry.size / 1e6, 1) for name, entry in found.manifest.files.items()},
            "gate": gate_tables(found),
            "bit_flips": flip_bits(second, arguments.flips),
        }
        if arguments.pairs:
            report["similarity"] = {"pairs": arguments.pairs.name, **similarity(found, read(arguments.pairs))}
            report["similarity"] |= sentence_transformers_similarity(
                arguments.run, Path(folder) / "third", read(arguments.pairs)
            )
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)
    sys.exit(bool(report["differing_files"]) or report["bit_flips"]["refused"] < arguments.flips)


def export(run: Path, target: Path, flags: Sequence[str]) -> dict[str, float]:
    """Runs polyhead-export; returns its duration and its peak memory."""
    began = time.monotonic()
    process = subprocess.Popen([BIN / "polyhead-export", run, target, *flags], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    # 3: a variant did not pass its gate; the gate results show which one is missing.
    if process.returncode not in {0, 3}:
        raise SystemExit(f"polyhead-export ended with code {process.returncode}")
    return {"seconds": round(time.monotonic() - began, 1), "peak_rss_mb": round(usage.ru_maxrss / 1e3)}


def differing_files(first: Path, second: Path) -> list[str]:
    """Returns the names of files that differ, or that only one of the folders has."""
    names = {path.relative_to(root).as_posix() for root in (first, second) for path in root.rglob("*")}
    files = sorted(name for name in names if not ((first / name).is_dir() and (second / name).is_dir()))
    _, mismatch, errors = filecmp.cmpfiles(first, second, files, shallow=False)
    return [*mismatch, *errors]


def gate_tables(found: bundle.Bundle) -> dict[str, dict[str, list[float]]]:
    """Returns the value and the limit of every gate check of every variant."""
    return {
        name: {check.name: [check.value, check.limit] for check in variant.gate}
        for name, variant in found.manifest.variants.items()
    }


def flip_bits(root: Path, count: int) -> dict[str, int | bool]:
    """Flips one bit at a time and loads the bundle; returns how many corrupt bundles were refused."""
    rng = random.Random(0)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    refused = 0
    for _ in tqdm(range(count), "flips"):
        # Half of the flips choose a file by size, half choose any file: otherwise small files would rarely be hit.
        (path,) = rng.choices(files, sizes if rng.random() < 0.5 else None)
        offset, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        _flip(path, offset, bit)
        try:
            bundle.load(root)
        except bundle.BundleError:
            refused += 1
        _flip(path, offset, bit)
    bundle.load(root)
    return {"flipped": count, "refused": refused, "intact_copy_loads": True}


def _flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        (value,) = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([value ^ 1 << bit]))


def similarity(found: bundle.Bundle, pairs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns Spearman's correlation through the trained model and through the graph of every variant."""
    manifest, tokenizer = found.manifest, load_tokenizer(found.file("tokenizer.json"))
    runners = {"torch": torch_runner(load_model(found.file("torch/model.safetensors").parent))}
    runners |= {name: onnx_runner(found.file(one.file)) for name, one in manifest.variants.items()}
    figures = {}
    for name, runner in runners.items():

        def embed(texts: Sequence[str], runner: Any = runner) -> NDArray[np.float32]:
            ids = list(encode(tokenizer, texts, manifest.max_tokens))
            return predict(runner, ids, manifest.pad_token_id)[manifest.embedding.output]

        figures[name] = spearman(embed, pairs)
    return figures


def sentence_transformers_similarity(run: Path, target: Path, pairs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns Spearman's correlation through sentence-transformers, on the export with ``--format``."""
    from sentence_transformers import SentenceTransformer

    subprocess.run(
        [BIN / "polyhead-export", run, target, "--variant=fp32", "--format=sentence-transformers"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    folder = target.with_name(f"{target.name}-sentence-transformers")
    model = SentenceTransformer(str(folder), device="cpu")
    figure = spearman(lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False)), pairs)
    shutil.rmtree(folder)
    return {"sentence-transformers": figure}


def spearman(embed: Embed, pairs: Sequence[dict[str, Any]]) -> float:
    """Returns Spearman's correlation of cosines and scores."""
    first, second = (embed([pair[side] for pair in pairs]) for side in ("a", "b"))
    found = correlations(first, second, np.array([pair["score"] for pair in pairs])).spearman
    return round(found or 0.0, 6)


if __name__ == "__main__":
    main()

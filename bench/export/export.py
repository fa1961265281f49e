"""What an export costs and proves: time, memory, the same bytes twice, the gate's tables, damage, and similarity.

    python bench/export/export.py RUN_DIR --eval-data test.jsonl.gz --pairs stsb_dev.jsonl.gz --output bench/results/export.json

Exports the run twice by the command that users type, with every variant, and compares the two bundles byte by byte.
Flips single random bits anywhere in a copy and counts the copies that are refused; the control is the copy itself.
With pairs of texts and a score (fields ``a``, ``b``, ``score``): Spearman's correlation of the cosines, through
sentence-transformers, through the trained model and through every variant's graph.
"""

from __future__ import annotations

import argparse
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
from datetime import UTC, datetime
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

from bench.harness.servers import BIN
from bench.harness.texts import read

Embed = Callable[[Sequence[str]], NDArray[np.float32]]  # texts to their (texts, H) embeddings

_VARIANTS = ("int8", "int8-dynamic", "fp16")


def main() -> None:
    """Runs the command line; ends with 1 where the bundles differ or a damaged one was not refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--eval-data", nargs="+", type=Path, default=[], help="held-out labelled files for the gate")
    parser.add_argument("--pairs", type=Path, help="pairs of texts with a score")
    parser.add_argument("--flips", type=int, default=300, help="bits to flip, one at a time (default: 300)")
    parser.add_argument("--config", type=Path, help="configuration of the export")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    flags = [f"--variant={name}" for name in _VARIANTS]
    flags += [f"--eval-data={path.resolve()}" for path in arguments.labelled]
    flags += [f"--config={arguments.config}"] if arguments.config else []
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first", Path(folder) / "second"
        runs = [export(arguments.run, target, flags) for target in (first, second)]
        found = bundle.load(first)
        report: dict[str, Any] = {
            "date": datetime.now(UTC).date().isoformat(),
            "run": found.manifest.name,
            "labelled": [path.name for path in arguments.labelled],
            "exports": runs,
            "differing_files": differing(first, second),
            "megabytes": {name: round(entry.size / 1e6, 1) for name, entry in found.manifest.files.items()},
            "gate": gate_tables(found),
            "flips": flips(second, arguments.flips),
        }
        if arguments.pairs:
            report["similarity"] = {"pairs": arguments.pairs.name, **similarity(found, read(arguments.pairs))}
            report["similarity"] |= neighbours(arguments.run, Path(folder) / "third", read(arguments.pairs))
    print(json.dumps(report, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(bool(report["differing_files"]) or report["flips"]["refused"] < arguments.flips)


def export(run: Path, target: Path, flags: Sequence[str]) -> dict[str, float]:
    """Exports with the command; seconds, and the largest resident memory in MB."""
    began = time.monotonic()
    process = subprocess.Popen([BIN / "polyhead-export", run, target, *flags], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    # 3: a variant did not pass; the table says which is missing.
    if process.returncode not in {0, 3}:
        raise SystemExit(f"the export ended with {process.returncode}")
    return {"seconds": round(time.monotonic() - began, 1), "peak_megabytes": round(usage.ru_maxrss / 1e3)}


def differing(first: Path, second: Path) -> list[str]:
    """Names of the files that are not the same in both, or in one alone."""
    names = {path.relative_to(root).as_posix() for root in (first, second) for path in root.rglob("*")}
    files = sorted(name for name in names if not ((first / name).is_dir() and (second / name).is_dir()))
    _, mismatch, errors = filecmp.cmpfiles(first, second, files, shallow=False)
    return [*mismatch, *errors]


def gate_tables(found: bundle.Bundle) -> dict[str, dict[str, list[float]]]:
    """Value and limit of every check of every variant."""
    return {
        name: {check.name: [check.value, check.limit] for check in variant.gate}
        for name, variant in found.manifest.variants.items()
    }


def flips(root: Path, count: int) -> dict[str, int | bool]:
    """Flips a bit, loads, flips it back, and so on; how many of the damaged bundles were refused."""
    chooser = random.Random(0)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    refused = 0
    for _ in tqdm(range(count), "flips"):
        # Half of them anywhere, half in any file: the small files would hardly be hit otherwise.
        (path,) = chooser.choices(files, sizes if chooser.random() < 0.5 else None)
        place, bit = chooser.randrange(path.stat().st_size), chooser.randrange(8)
        _flip(path, place, bit)
        try:
            bundle.load(root)
        except bundle.BundleError:
            refused += 1
        _flip(path, place, bit)
    bundle.load(root)
    return {"flipped": count, "refused": refused, "undamaged_loads": True}


def _flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        (value,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([value ^ 1 << bit]))


def similarity(found: bundle.Bundle, pairs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Spearman's correlation through the trained model and through every graph."""
    manifest, tokenizer = found.manifest, load_tokenizer(found.file("tokenizer.json"))
    ways = {"torch": torch_runner(load_model(found.file("torch/model.safetensors").parent))}
    ways |= {name: onnx_runner(found.file(one.file)) for name, one in manifest.variants.items()}
    figures = {}
    for name, way in ways.items():

        def embed(texts: Sequence[str], way: Any = way) -> NDArray[np.float32]:
            ids = list(encode(tokenizer, texts, manifest.max_tokens))
            return predict(way, ids, manifest.pad_token_id)[manifest.embedding.output]

        figures[name] = spearman(embed, pairs)
    return figures


def neighbours(run: Path, target: Path, pairs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The same through sentence-transformers, on what ``--format`` writes."""
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
    """Spearman's correlation of cosines and scores."""
    first, second = (embed([pair[side] for pair in pairs]) for side in ("a", "b"))
    found = correlations(first, second, np.array([pair["score"] for pair in pairs])).spearman
    return round(found or 0.0, 6)


if __name__ == "__main__":
    main()

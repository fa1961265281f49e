"""The server under closed loops, as a share of bare onnxruntime on the same cores, and what three tasks cost over one.

The limit is bare onnxruntime in this process: the same graph, as many threads as the server has, tokenized and sorted
by length beforehand, batches of at most 256 tokens. The client is a process of its own on the same cores; the second
share leaves out the CPU time that it took. Rounds are interleaved, with a limit before every load, so that a noisy
machine disturbs all alike; what is written are medians over the rounds, with their ranges.

    python bench/serving.py --bundle build/demo/bundle --variant int8 --output bench/results/serving-int8.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from agreement import read
from polyhead_export import bundle
from polyhead_server.engines.onnx import OnnxEngine
from polyhead_server.loading import pad
from polyhead_server.settings import usable_cores
from polyhead_server.tokenization import Tokenizer
from servers import serving
from tqdm import tqdm

HERE = Path(__file__).parent
DEMO = HERE.parent / "training/demo/train.jsonl"
MAX_BATCH_TOKENS = 256
# What a load is called, and the flags that make it.
LOADS: dict[str, tuple[str, ...]] = {
    "unary, 1 item, 1 in flight": ("--items", "1", "--in-flight", "1"),
    "unary, 1 item, 8 in flight": ("--items", "1", "--in-flight", "8"),
    "unary, 1 item, 64 in flight": ("--items", "1", "--in-flight", "64"),
    "unary, 1 item, 256 in flight": ("--items", "1", "--in-flight", "256"),
    "unary, 8 items, 64 in flight": ("--items", "8", "--in-flight", "64"),
    "unary, 32 items, 256 in flight": ("--items", "32", "--in-flight", "256"),
    "stream, 1 item, 64 in flight": ("--way", "stream", "--items", "1", "--in-flight", "64"),
    "stream, 8 items, 64 in flight": ("--way", "stream", "--items", "8", "--in-flight", "64"),
    "stream, 32 items, 256 in flight": ("--way", "stream", "--items", "32", "--in-flight", "256"),
    "the same, embedding alone": ("--way", "stream", "--items", "32", "--in-flight", "256", "--tasks", "1"),
    "client, 64 in flight": ("--way", "client", "--in-flight", "64"),
}
Figures = dict[str, float]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--variant", default="int8", help="variant to serve and to compare with (default: int8)")
    parser.add_argument("--texts", type=Path, default=DEMO, help="JSON lines with a field `text`, or a text a line")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all loads (default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds of a load (default: 5)")
    parser.add_argument("--only", nargs="+", metavar="PREFIX", help="only loads whose names begin so")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    wanted = tuple(arguments.only or ("",))
    loads = {name: flags for name, flags in LOADS.items() if name.startswith(wanted)}
    run = bare(arguments.bundle, arguments.variant, [row["text"] for row in read(arguments.texts)])
    found: dict[str, list[Figures]] = {name: [] for name in loads}
    flags = ("--engine", "onnx", "--device", "cpu", "--variant", arguments.variant)
    with serving(arguments.bundle, *flags) as target, tqdm(total=arguments.rounds * len(loads), unit="load") as bar:
        for _ in range(arguments.rounds):
            for name, load in loads.items():
                limit = run(arguments.seconds)
                figures = put_load(target, arguments.texts, arguments.seconds, load)
                found[name].append(judged(figures, (limit + run(arguments.seconds)) / 2))
                bar.update()
    report = summary(arguments, found)
    print(table(report["loads"]))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def put_load(target: str, texts: Path, seconds: float, flags: Sequence[str]) -> Figures:
    """Runs the client's process and reads its line."""
    command = [sys.executable, str(HERE / "load.py"), target, str(texts), "--seconds", str(seconds), *flags]
    figures: Figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def judged(figures: Figures, limit: float) -> Figures:
    """The figures with the share of the limit, and the share of what the client's CPU time left of it."""
    share = figures["items_per_s"] / limit
    without_client = share / (1 - figures["client_cpu"] / usable_cores())
    return {"limit": limit, "share": share, "share_without_client": without_client, **figures}


def bare(path: Path, variant: str, texts: Sequence[str]) -> Callable[[float], float]:
    """Bare onnxruntime over the texts, tokenized, sorted and padded beforehand: seconds to texts a second."""
    source = bundle.load(path)
    manifest = source.manifest
    tokenizer = Tokenizer(source.file("tokenizer.json"), manifest.max_tokens, 250 * manifest.max_tokens)
    ids = sorted((one.ids for one in tokenizer.encode(list(texts))), key=len)
    batches: list[list[list[int]]] = [[]]
    for one in ids:
        if batches[-1] and (len(batches[-1]) + 1) * len(one) > MAX_BATCH_TOKENS:
            batches.append([])
        batches[-1].append(one)
    padded = [pad(batch, manifest.pad_token_id) for batch in batches]
    engine = OnnxEngine(source, variant, "cpu")

    # Whole batches of all lengths in a random order, so that any stretch of them is like the whole.
    order = np.random.default_rng(0).permutation(len(padded))

    def run(seconds: float) -> float:
        ends = time.perf_counter() + seconds
        work: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        for _ in range(1000):
            for number in order:
                work.put(number)

        def compute() -> None:
            while time.perf_counter() < ends:
                batch = padded[work.get()]
                engine.run(*batch)
                done.put(len(batch[0]))

        threads = [threading.Thread(target=compute) for _ in range(usable_cores())]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done.get() for _ in range(done.qsize())) / (time.perf_counter() - began)

    return run


def summary(arguments: argparse.Namespace, found: dict[str, list[Figures]]) -> dict[str, Any]:
    """Medians and ranges over the rounds, with the machine and the versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "variant": arguments.variant,
        "rounds": arguments.rounds,
        "cores": usable_cores(),
        "cpu": np.show_config("dicts")["SIMD Extensions"]["found"],
        "versions": {name: importlib.metadata.version(name) for name in ("polyhead", "onnxruntime", "grpcio")},
        "loads": {
            name: {figure: spread([one[figure] for one in rounds]) for figure in rounds[0]}
            for name, rounds in found.items()
        },
    }


def spread(values: Sequence[float]) -> list[float]:
    """Median, lowest and highest."""
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


def table(loads: dict[str, dict[str, list[float]]]) -> str:
    """The figures for a terminal."""
    lines = [f"{'load':<44}{'share of the limit':>22}{'without client':>16}{'p50 ms':>9}{'p99 ms':>9}"]
    for name, one in loads.items():
        share = "{:.2f} [{:.2f}, {:.2f}]".format(*one["share"])
        figures = f"{one['share_without_client'][0]:>16.2f}{one['p50_ms'][0]:>9.1f}{one['p99_ms'][0]:>9.1f}"
        lines.append(f"{name:<44}{share:>22}{figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

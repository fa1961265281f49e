"""The server under closed and open loops, as a share of bare onnxruntime on the same cores.

The limit is bare onnxruntime in this process: the same graph, as many threads as the server has, tokenized and sorted
by length beforehand, batches of at most 512 tokens, which gives most. The client is a process of its own on the same
cores; the second share leaves out the CPU time that it took. Rounds are interleaved, with a limit between any two
loads, so that a noisy machine disturbs all alike; what is written are medians over the rounds, with their ranges.
Poisson loads send at a share of the rate that 64 unary calls in flight reached in the same round. With one item in
flight, the overhead is the median latency beyond that of bare onnxruntime with one text at a time. Padding is what the
server's own metrics say, as a share of the real tokens.

    python bench/server/throughput.py --bundle build/demo/bundle --variant int8 --output bench/results/serving-int8.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import queue
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from polyhead_server.engines.collate import pad
from polyhead_server.engines.onnx import OnnxEngine
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.settings import usable_cores
from tqdm import tqdm

from bench.harness.servers import free_port, metric, serving
from bench.harness.texts import read, write_texts

HERE = Path(__file__).parent
DEMO = HERE.parent / "training/demo/train.jsonl"
MAX_BATCH_TOKENS = 512
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
    "the same, mixed tasks": ("--way", "stream", "--items", "32", "--in-flight", "256", "--mix"),
    "the same, embedding alone": ("--way", "stream", "--items", "32", "--in-flight", "256", "--tasks", "1"),
    "client, 64 in flight": ("--way", "client", "--in-flight", "64"),
}
# The load whose rate is taken for the capacity, and the shares of it that are sent as a Poisson process.
CAPACITY = "unary, 1 item, 64 in flight"
POISSON = {"Poisson 50 %, unary, 1 item": 0.5, "Poisson 80 %, unary, 1 item": 0.8}
ONE_IN_FLIGHT = "unary, 1 item, 1 in flight"
# Of the server's metrics.
_COMPUTED = ("polyhead_tokens_total", "polyhead_padding_tokens_total")
Figures = dict[str, float]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--variant", default="int8", help="variant to serve and to compare with (default: int8)")
    parser.add_argument("--texts", type=Path, default=DEMO, help="JSON lines with a field `text`, or a text a line")
    parser.add_argument("--long", action="store_true", help="make one text in ten of four, up to what the model reads")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all loads (default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds of a load (default: 5)")
    parser.add_argument("--only", nargs="+", metavar="PREFIX", help="only loads whose names begin so")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    wanted = tuple(arguments.only or ("",))
    loads = [name for name in (*LOADS, *POISSON) if name.startswith(wanted)]
    texts = [row["text"] for row in read(arguments.texts)]
    if arguments.long:
        texts = with_long(texts)
    limit = Limit(arguments.bundle, arguments.variant, texts)
    found: dict[str, list[Figures]] = {name: [] for name in loads}
    metrics = f"127.0.0.1:{free_port()}"
    flags = ("--engine", "onnx", "--device", "cpu", "--variant", arguments.variant, "--metrics-listen", metrics)
    with (
        tempfile.TemporaryDirectory() as work,
        serving(arguments.bundle, *flags) as target,
        tqdm(total=arguments.rounds * len(loads), unit="load") as bar,
    ):
        path = write_texts(Path(work) / "texts.jsonl", texts)
        before = limit.items_per_s(arguments.seconds)
        for _ in range(arguments.rounds):
            for name in loads:
                computed = [metric(metrics, one) for one in _COMPUTED]
                figures = run_load(target, path, arguments.seconds, load_of(name, found))
                tokens, padding = (metric(metrics, one) - was for one, was in zip(_COMPUTED, computed, strict=True))
                figures["padding"] = padding / tokens
                if name == ONE_IN_FLIGHT:
                    alone_ms = limit.alone_ms()
                    figures |= {"alone_ms": alone_ms, "overhead_ms": figures["p50_ms"] - alone_ms}
                after = limit.items_per_s(arguments.seconds)
                found[name].append(with_efficiency(figures, (before + after) / 2))
                before = after
                bar.update()
    medians = {
        name: {figure: spread([one[figure] for one in rounds]) for figure in rounds[0]}
        for name, rounds in found.items()
    }
    report = {**header(arguments), "loads": medians}
    print(table(medians))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def with_long(texts: Sequence[str]) -> list[str]:
    """The texts, one in ten of which is made of itself and three others."""
    return [
        " ".join([text, *(texts[(number + step) % len(texts)] for step in (1, 2, 3))]) if number % 10 == 0 else text
        for number, text in enumerate(texts)
    ]


def load_of(name: str, found: dict[str, list[Figures]]) -> tuple[str, ...]:
    """The flags of a load; those of an open loop come from what the closed loop of this round reached."""
    if name in POISSON:
        return ("--items", "1", "--rate", str(POISSON[name] * found[CAPACITY][-1]["items_per_s"]))
    return LOADS[name]


def run_load(target: str, texts: Path, seconds: float, flags: Sequence[str]) -> Figures:
    """Runs the client's process and reads its line."""
    command = [sys.executable, str(HERE / "load.py"), target, str(texts), "--seconds", str(seconds), *flags]
    figures: Figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def put_loads(target: str, texts: Path, seconds: float, clients: int, flags: Sequence[str]) -> Figures:
    """Runs several clients' processes side by side: what they reached together, and the means of their latencies."""
    with ThreadPoolExecutor(clients) as threads:
        reports = list(threads.map(lambda _: run_load(target, texts, seconds, flags), range(clients)))
    sums = {name: sum(one[name] for one in reports) for name in ("items_per_s", "client_cpu")}
    return {**sums, **{name: statistics.fmean(one[name] for one in reports) for name in ("p50_ms", "p99_ms")}}


def with_efficiency(figures: Figures, limit: float) -> Figures:
    """The figures with the share of the limit, and the share of what the client's CPU time left of it."""
    share = figures["items_per_s"] / limit
    without_client = share / (1 - figures["client_cpu"] / usable_cores())
    return {"limit": limit, "share": share, "share_without_client": without_client, **figures}


class Limit:
    """Bare onnxruntime over texts that were tokenized, sorted and padded beforehand."""

    def __init__(self, path: Path, variant: str, texts: Sequence[str]) -> None:
        source = bundle.load(path)
        manifest = source.manifest
        tokenizer = Tokenizer(source.file("tokenizer.json"), manifest.max_tokens, 250 * manifest.max_tokens)
        ids = sorted((one.windows[0] for one in tokenizer.encode(list(texts))), key=len)
        batches: list[list[list[int]]] = [[]]
        for one in ids:
            if batches[-1] and (len(batches[-1]) + 1) * len(one) > MAX_BATCH_TOKENS:
                batches.append([])
            batches[-1].append(one)
        self._padded = [pad(batch, manifest.pad_token_id) for batch in batches]
        self._singles = [pad([one], manifest.pad_token_id) for one in ids[:: max(1, len(ids) // 200)]]
        # Whole batches of all lengths in a random order, so that any stretch of them is like the whole.
        self._order = np.random.default_rng(0).permutation(len(self._padded))
        self._engine = OnnxEngine(source, variant, "cpu")

    def items_per_s(self, seconds: float) -> float:
        """The rate of as many threads as there are cores, over so many seconds."""
        ends = time.perf_counter() + seconds
        work: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        for _ in range(1000):
            for number in self._order:
                work.put(number)

        def compute() -> None:
            while time.perf_counter() < ends:
                batch = self._padded[work.get()]
                self._engine.run(*batch)
                done.put(len(batch[0]))

        threads = [threading.Thread(target=compute) for _ in range(usable_cores())]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done.get() for _ in range(done.qsize())) / (time.perf_counter() - began)

    def alone_ms(self) -> float:
        """The median time of one text alone, on one thread."""
        return 1000 * statistics.median(self._alone(*one) for one in self._singles)

    def _alone(self, *one: Any) -> float:
        began = time.perf_counter()
        self._engine.run(*one)
        return time.perf_counter() - began


def header(arguments: argparse.Namespace) -> dict[str, Any]:
    """When, with which command, on what."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "variant": arguments.variant,
        "rounds": arguments.rounds,
        "cores": usable_cores(),
        "cpu": np.show_config("dicts")["SIMD Extensions"]["found"],
        "versions": {name: importlib.metadata.version(name) for name in ("polyhead", "onnxruntime", "grpcio")},
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

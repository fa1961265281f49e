"""What the server costs over bare onnxruntime, and what three tasks cost over one.

Rounds are interleaved, so that a noisy machine disturbs all columns alike; medians of the ratios of each round are
printed. The limit is bare onnxruntime in this process: the same graph, as many threads as the server has, tokenized and
sorted by length beforehand, batches of at most 256 tokens. The client runs on the same cores as the server.

    python bench/serving.py --bundle build/bundle --rounds 5
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import queue
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polyhead_client import Client, Task
from polyhead_export import bundle
from polyhead_server.engines.onnx import OnnxEngine
from polyhead_server.loading import pad
from polyhead_server.settings import usable_cores
from polyhead_server.tokenization import Tokenizer
from servers import serving

DEMO = Path(__file__).parents[1] / "training/demo/train.jsonl"
MAX_BATCH_TOKENS = 256
ALL: tuple[Task, ...] = ("embedding", "classification", "sentiment")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--texts", type=Path, default=DEMO, help="JSON lines with a field `text`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    texts = [json.loads(line)["text"] for line in arguments.texts.read_text(encoding="utf-8").splitlines()]
    with serving(arguments.bundle, "--engine", "onnx", "--device", "cpu") as target, Client(target) as client:
        runs = {
            "limit": bare(arguments.bundle, texts),
            "stream, three tasks": lambda: drain(client, texts, ALL),
            "stream, embedding": lambda: drain(client, texts, ALL[:1]),
            "stream, classification": lambda: drain(client, texts, ALL[1:2]),
            "unary of 32, three tasks": lambda: in_calls(client, texts, 32),
            "unary of 1, one in flight": lambda: in_calls(client, texts[:200], 1),
        }
        sizes = {name: 200 if "one in flight" in name else len(texts) for name in runs}
        rates = measure(runs, sizes, arguments.rounds)
    report = summary(rates, len(texts))
    print(json.dumps(report, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def measure(runs: dict[str, Callable[[], None]], sizes: dict[str, int], rounds: int) -> dict[str, list[float]]:
    """Texts a second of every run in every round, after one round that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                rates[name].append(sizes[name] / (time.perf_counter() - start))
    return rates


def bare(path: Path, texts: Sequence[str]) -> Callable[[], None]:
    """Bare onnxruntime over the texts: tokenized, sorted and padded beforehand."""
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
    engine = OnnxEngine(source, "fp32", "cpu")

    def run() -> None:
        work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for batch in padded:
            work.put(batch)
        threads = [threading.Thread(target=compute, args=(work,)) for _ in range(usable_cores())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def compute(work: queue.SimpleQueue[Any]) -> None:
        while True:
            try:
                batch = work.get_nowait()
            except queue.Empty:
                return
            engine.run(*batch)

    return run


def drain(client: Client, texts: Sequence[str], tasks: Sequence[Task]) -> None:
    """All texts over one stream."""
    if sum(answer.result is not None for answer in client.stream(texts, tasks=tasks)) != len(texts):
        raise SystemExit("a text was not answered")


def in_calls(client: Client, texts: Sequence[str], size: int) -> None:
    """All texts in unary calls, one after the other."""
    for start in range(0, len(texts), size):
        client.analyze(texts[start : start + size])


def summary(rates: dict[str, list[float]], count: int) -> dict[str, Any]:
    """Medians over the rounds, with the machine and the versions."""
    limit = rates["limit"]
    three = rates["stream, three tasks"]
    return {
        "texts": count,
        "cores": usable_cores(),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("polyhead", "onnxruntime", "grpcio")},
        "share_of_limit": {
            name: _median_ratio(values, limit) for name, values in rates.items() if "in flight" not in name
        },
        "limit_texts_per_s": round(statistics.median(limit), 1),
        "cost_of_three_tasks_over_one": {
            name: _median_ratio(rates[name], three) for name in ("stream, embedding", "stream, classification")
        },
        "one_in_flight_ms": round(1000 / statistics.median(rates["unary of 1, one in flight"]), 2),
    }


def _median_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    return round(statistics.median(value / other for value, other in zip(values, base, strict=True)), 3)


if __name__ == "__main__":
    main()

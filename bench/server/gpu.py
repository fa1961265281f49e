"""PyTorch on a GPU: its passes against the bare model's, and the server against the limit of the device.

Passes: one of the server's engine, from token ids in memory to answers in memory, beside the bare model's, each
operator launched by itself, with both copies. The limit: the bare model over texts that were tokenized, sorted, padded
and copied to the device beforehand, passes of so many tokens as give most, nothing copied back. Serving: closed loops
of several client processes on the same machine, with one worker process and with more; the share of the limit, and with
one text in flight what the client waits beyond a pass of the engine alone. Answers: how far those of the device are
from PyTorch's in float32 on the CPU, and those of texts in batches from those of texts alone.

    python bench/server/gpu.py --bundle build/demo/bundle --output bench/results/gpu.json

A variant that the bundle lacks is left out: `polyhead-export RUN BUNDLE --variant fp32 --variant fp16` makes both.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import torch
from numpy.typing import NDArray
from polyhead_export.runners import torch_runner
from polyhead_server.engines import Engine, open_engine
from polyhead_server.inference.model import pad
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.settings import usable_cores
from polyhead_training.model import PolyheadModel, load_model
from tqdm import tqdm

from bench.harness.servers import serving
from bench.harness.texts import read

from .throughput import DEMO, put_loads, spread

SHAPES = ((1, 16), (1, 128), (8, 32), (64, 32), (64, 64), (256, 32), (1024, 32))
LIMIT_TOKENS = (4096, 8192, 16_384, 32_768)
# Clients at most, and the flags of each.
LOADS = {
    "unary, 1 item, 1 in flight": (1, ("--way", "unary", "--items", "1", "--in-flight", "1")),
    "unary, 1 item, 64 in flight": (1, ("--way", "unary", "--items", "1", "--in-flight", "64")),
    "stream, 32 items": (8, ("--way", "stream", "--items", "32", "--in-flight", "1024")),
}
VERSIONS = {
    "torch": ("polyhead", "torch", "transformers", "grpcio"),
    "onnx": ("polyhead", "onnxruntime-gpu", "torch", "grpcio"),
}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_REPEATED = 30
Figures = dict[str, Any]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--engine", choices=("torch", "onnx"), default="torch", help="engine (default: torch)")
    parser.add_argument("--workers", type=int, nargs="*", default=(1, 4, 8), help="worker processes (default: 1 4 8)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of all loads (default: 2)")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured seconds of a load (default: 3)")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    source = bundle.load(arguments.bundle)
    texts = [row["text"] for row in read(DEMO)]
    manifest = source.manifest
    tokenizer = Tokenizer(source.file("tokenizer.json"), manifest.max_tokens, 250 * manifest.max_tokens)
    ids = [one.windows[0] for one in tokenizer.encode(texts)]
    report: Figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "engine": arguments.engine,
        "rounds": arguments.rounds,
        "gpu": torch.cuda.get_device_name(),
        "cores": usable_cores(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS[arguments.engine]},
        "variants": {},
    }
    for variant in (name for name in _DTYPES if name in manifest.variants):
        bare = load_model(source.file("torch/model.safetensors").parent).to("cuda", _DTYPES[variant])
        engine = open_engine(source, arguments.engine, "cuda", variant)
        report["variants"][variant] = {
            "answers": answers(source, engine, ids),
            "passes": {f"{rows} x {width}": passes(bare, engine, rows, width) for rows, width in SHAPES},
            "limit": limit(bare, ids, manifest.pad_token_id, arguments.seconds),
            "alone_ms": alone(engine, ids[:200], manifest.pad_token_id),
        }
        print(json.dumps(report["variants"][variant], indent=1), flush=True)
        del bare, engine
        report["variants"][variant]["serving"] = serve(arguments, variant, report["variants"][variant])
        print(json.dumps(report["variants"][variant]["serving"], indent=1), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def timed(run: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


def median_ms(run: Callable[[], object]) -> float:
    """The median of several runs, after one that plans."""
    run()
    return round(statistics.median(timed(run) for _ in range(_REPEATED)), 3)


@torch.inference_mode()
def passes(bare: PolyheadModel, engine: Engine, rows: int, width: int) -> Figures:
    """Milliseconds of a pass of one shape."""
    input_ids = np.random.default_rng(0).integers(1000, 20_000, (rows, width))
    mask = np.ones_like(input_ids)

    def by_operator() -> None:
        outputs = bare(torch.from_numpy(input_ids).cuda(), torch.from_numpy(mask).cuda())
        for one in (outputs.sentence_embedding, *outputs.logits.values()):
            one.float().cpu()

    bare_ms, engine_ms = median_ms(by_operator), median_ms(lambda: engine.run(input_ids, mask))
    return {"bare_ms": bare_ms, "engine_ms": engine_ms, "times": round(bare_ms / engine_ms, 2)}


@torch.inference_mode()
def limit(bare: PolyheadModel, ids: Sequence[list[int]], pad_token_id: int, seconds: float) -> Figures:
    """Texts a second of the bare model, by the tokens of a pass."""
    rates: Figures = {}
    for tokens in LIMIT_TOKENS:
        batches = [
            [torch.from_numpy(part).cuda() for part in pad(batch, pad_token_id)]
            for batch in batches_of(sorted(ids, key=len), tokens)
        ]
        for batch in batches:
            bare(*batch)
        torch.cuda.synchronize()
        began, done = time.perf_counter(), 0
        while time.perf_counter() < began + seconds:
            for batch in batches:
                bare(*batch)
            done += len(ids)
            torch.cuda.synchronize()
        rates[str(tokens)] = round(done / (time.perf_counter() - began))
    return {"texts_per_s": rates, "most": max(rates.values())}


def alone(engine: Engine, ids: Sequence[list[int]], pad_token_id: int) -> float:
    """The median milliseconds of a text alone."""
    singles = [pad([one], pad_token_id) for one in ids]
    for _ in range(2):  # graphs are captured in the first round
        spent = [timed(functools.partial(engine.run, *one)) for one in singles]
    return round(statistics.median(spent), 3)


def batches_of(ids: Sequence[list[int]], tokens: int) -> list[list[list[int]]]:
    """Neighbours, up to so many tokens with their padding."""
    batches: list[list[list[int]]] = [[]]
    for one in ids:
        if batches[-1] and (len(batches[-1]) + 1) * len(one) > tokens:
            batches.append([])
        batches[-1].append(one)
    return batches


def answers(source: bundle.Bundle, engine: Engine, ids: Sequence[list[int]]) -> Figures:
    """The largest differences of any number of an answer."""
    some = list(ids[:200])
    reference = torch_runner(load_model(source.file("torch/model.safetensors").parent))
    names = [source.manifest.embedding.output, *(head.output for head in source.manifest.heads)]

    def stacked(batches: Sequence[Sequence[list[int]]], run: Callable[..., Sequence[NDArray[Any]]]) -> NDArray[Any]:
        rows = [np.concatenate(run(*pad(list(batch), source.manifest.pad_token_id)), axis=1) for batch in batches]
        return np.concatenate(rows)

    right = stacked([[one] for one in some], lambda *one: [reference(*one)[name] for name in names])
    alone = stacked([[one] for one in some], engine.run)
    batched = stacked([some[start : start + 40] for start in range(0, len(some), 40)], engine.run)
    return {
        "texts": len(some),
        "from_float32_on_cpu": float(np.abs(alone - right).max()),
        "batched_from_alone": float(np.abs(batched - alone).max()),
    }


def serve(arguments: argparse.Namespace, variant: str, known: Figures) -> Figures:
    """Medians with ranges of each load, by workers."""
    found: dict[str, list[Figures]] = {}
    flags = ("--engine", arguments.engine, "--device", "cuda", "--variant", variant)
    for workers in arguments.workers:
        # A GPU serves single calls no better from more processes.
        loads = {name: load for name, load in LOADS.items() if workers == 1 or load[0] > 1}
        with serving(arguments.bundle, *flags, "--workers", str(workers)) as target:
            for _ in tqdm(range(arguments.rounds), desc=f"{variant}, {workers} workers"):
                for name, (clients, load) in loads.items():
                    figures = put_loads(target, DEMO, arguments.seconds, min(clients, 2 * workers), load)
                    figures["share"] = figures["items_per_s"] / known["limit"]["most"]
                    if name.endswith(" 1 in flight"):
                        figures["overhead_ms"] = figures["p50_ms"] - known["alone_ms"]
                    found.setdefault(f"{name}, {workers} workers", []).append(figures)
    return {
        name: {figure: spread([one[figure] for one in rounds]) for figure in rounds[0]}
        for name, rounds in found.items()
    }


if __name__ == "__main__":
    main()

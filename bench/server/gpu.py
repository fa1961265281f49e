"""Speed and numerical accuracy of an engine and of the server on a GPU.

    polyhead-export RUN build/gpu/bundle --variant fp32 --variant fp16
    python -m bench.server.gpu --bundle build/gpu/bundle --output bench/results/gpu.json
    python -m bench.server.gpu --bundle build/gpu/bundle --engine onnx --output bench/results/gpu_onnx.json

batches      one batch in the server's engine, from token ids in memory to answers in memory, beside the model in
             PyTorch with one kernel launch per operator, both copies included
upper_bound  the model in PyTorch over texts that were tokenized, sorted, padded and copied to the device beforehand,
             at the best number of tokens per batch; nothing is copied back
serving      closed-loop load of several load generators on the same machine, with one and with more workers;
             efficiency is relative to upper_bound, and overhead_ms is the latency beyond a batch of the engine alone
accuracy     the largest differences from PyTorch in fp32 on the CPU, and between a text in a batch and alone

A variant that the bundle lacks is skipped.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import torch
from numpy.typing import NDArray
from polyhead_export.runners import torch_runner
from polyhead_server.engines import Engine, open_engine
from polyhead_server.engines.collate import pad
from polyhead_training.model import PolyheadModel, load_model
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.servers import serving
from bench.harness.texts import DEMO_TEXTS, first_turn, read_texts
from bench.harness.upper_bound import batches_of_similar_length, open_tokenizer
from bench.loadgen.launch import run_loads

SHAPES = ((1, 16), (1, 128), (8, 32), (64, 32), (64, 64), (256, 32), (1024, 32))
BATCH_TOKENS = (4096, 8192, 16_384, 32_768)
# Maximum number of load generators, and the flags of each.
LOADS = {
    "unary, 1 item, 1 in flight": (1, ("--mode", "unary", "--items", "1", "--in-flight", "1")),
    "unary, 1 item, 64 in flight": (1, ("--mode", "unary", "--items", "1", "--in-flight", "64")),
    "stream, 32 items": (8, ("--mode", "stream", "--items", "32", "--in-flight", "1024")),
}
PACKAGES = {
    "torch": ("polyhead", "torch", "transformers", "grpcio"),
    "onnx": ("polyhead", "onnxruntime-gpu", "torch", "grpcio"),
}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_REPETITIONS = 30
_COMPARED_TEXTS = 200
Figures = dict[str, Any]


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle with the variants fp32 and fp16")
    parser.add_argument("--engine", choices=("torch", "onnx"), default="torch", help="engine (default: torch)")
    parser.add_argument("--workers", type=int, nargs="*", default=(1, 4, 8), help="worker counts (default: 1 4 8)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of all loads (default: 2)")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured seconds per load (default: 3)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    source = bundle.load(arguments.bundle)
    ids = [one.windows[0] for one in open_tokenizer(source).encode(first_turn(read_texts(DEMO_TEXTS)))]
    pad_token_id = source.manifest.pad_token_id
    report: Figures = {
        **results.provenance(PACKAGES[arguments.engine]),
        "engine": arguments.engine,
        "rounds": arguments.rounds,
        "gpu": torch.cuda.get_device_name(),
        "variants": {},
    }
    for variant in (name for name in _DTYPES if name in source.manifest.variants):
        model = load_model(source.file("torch/model.safetensors").parent).to("cuda", _DTYPES[variant])
        engine = open_engine(source, arguments.engine, "cuda", variant)
        figures: Figures = {
            "accuracy": measure_accuracy(source, engine, ids),
            "batches": {f"{rows} x {width}": time_batch(model, engine, rows, width) for rows, width in SHAPES},
            "upper_bound": measure_upper_bound(model, ids, pad_token_id, arguments.seconds),
            "single_text_ms": time_single_texts(engine, ids[:200], pad_token_id),
        }
        # Frees the GPU for the server.
        del model, engine
        figures["serving"] = measure_serving(arguments, variant, figures)
        report["variants"][variant] = figures
        print(json.dumps(figures, indent=1), flush=True)
        results.write(arguments.output, report)


def time_ms(run: Callable[[], object]) -> float:
    """Returns the duration of one call in milliseconds."""
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


def median_ms(run: Callable[[], object]) -> float:
    """Returns the median duration of repeated calls in milliseconds, after one warm-up call."""
    run()
    return round(statistics.median(time_ms(run) for _ in range(_REPETITIONS)), 3)


@torch.inference_mode()
def time_batch(model: PolyheadModel, engine: Engine, rows: int, width: int) -> Figures:
    """Returns the milliseconds of a batch of one shape in plain PyTorch and in the engine."""
    input_ids = np.random.default_rng(0).integers(1000, 20_000, (rows, width))
    mask = np.ones_like(input_ids)

    def run_pytorch() -> None:
        outputs = model(torch.from_numpy(input_ids).cuda(), torch.from_numpy(mask).cuda())
        for one in (outputs.sentence_embedding, *outputs.logits.values()):
            one.float().cpu()

    pytorch_ms, engine_ms = median_ms(run_pytorch), median_ms(lambda: engine.run(input_ids, mask))
    return {"pytorch_ms": pytorch_ms, "engine_ms": engine_ms, "speedup": round(pytorch_ms / engine_ms, 2)}


@torch.inference_mode()
def measure_upper_bound(model: PolyheadModel, ids: Sequence[list[int]], pad_token_id: int, seconds: float) -> Figures:
    """Returns texts per second of the model in PyTorch by the tokens per batch, and the highest of them."""
    rates: Figures = {}
    for tokens in BATCH_TOKENS:
        batches = [
            [torch.from_numpy(part).cuda() for part in pad(batch, pad_token_id)]
            for batch in batches_of_similar_length(ids, tokens)
        ]
        for batch in batches:
            model(*batch)
        torch.cuda.synchronize()
        began, done = time.perf_counter(), 0
        while time.perf_counter() < began + seconds:
            for batch in batches:
                model(*batch)
            done += len(ids)
            torch.cuda.synchronize()
        rates[str(tokens)] = round(done / (time.perf_counter() - began))
    return {"items_per_s_by_tokens": rates, "items_per_s": max(rates.values())}


def time_single_texts(engine: Engine, ids: Sequence[list[int]], pad_token_id: int) -> float:
    """Returns the median milliseconds of a batch of one text."""
    singles = [pad([one], pad_token_id) for one in ids]
    for _ in range(2):  # the first round captures CUDA graphs
        spent = [time_ms(functools.partial(engine.run, *one)) for one in singles]
    return round(statistics.median(spent), 3)


def measure_accuracy(source: bundle.Bundle, engine: Engine, ids: Sequence[list[int]]) -> Figures:
    """Returns the largest absolute differences of any output."""
    compared = list(ids[:_COMPARED_TEXTS])
    reference = torch_runner(load_model(source.file("torch/model.safetensors").parent))
    names = [source.manifest.embedding.output, *(head.output for head in source.manifest.heads)]

    def outputs(batches: Sequence[Sequence[list[int]]], run: Callable[..., Sequence[NDArray[Any]]]) -> NDArray[Any]:
        rows = [np.concatenate(run(*pad(list(batch), source.manifest.pad_token_id)), axis=1) for batch in batches]
        return np.concatenate(rows)  # (texts, embedding dimensions + logits)

    expected = outputs([[one] for one in compared], lambda *one: [reference(*one)[name] for name in names])
    single = outputs([[one] for one in compared], engine.run)
    batched = outputs([compared[start : start + 40] for start in range(0, len(compared), 40)], engine.run)
    return {
        "texts": len(compared),
        "max_difference_from_cpu_fp32": float(np.abs(single - expected).max()),
        "max_difference_single_vs_batched": float(np.abs(batched - single).max()),
    }


def measure_serving(arguments: argparse.Namespace, variant: str, known: Figures) -> Figures:
    """Returns the [median, lowest, highest] of each load and number of workers."""
    found: dict[str, list[Figures]] = {}
    flags = ("--engine", arguments.engine, "--device", "cuda", "--variant", variant)
    for workers in arguments.workers:
        # More processes do not speed up single calls on a GPU.
        loads = {name: load for name, load in LOADS.items() if workers == 1 or load[0] > 1}
        suffix = f"{workers} worker{'s' if workers > 1 else ''}"
        with serving(arguments.bundle, *flags, "--workers", str(workers)) as target:
            for _ in tqdm(range(arguments.rounds), desc=f"{variant}, {suffix}"):
                for name, (clients, load) in loads.items():
                    figures: Figures = {
                        **run_loads(target, DEMO_TEXTS, arguments.seconds, min(clients, 2 * workers), load)
                    }
                    figures["efficiency"] = figures["items_per_s"] / known["upper_bound"]["items_per_s"]
                    if name.endswith(" 1 in flight"):
                        figures["overhead_ms"] = figures["p50_ms"] - known["single_text_ms"]
                    found.setdefault(f"{name}, {suffix}", []).append(figures)
    return {name: results.spread_all(rounds) for name, rounds in found.items()}


if __name__ == "__main__":
    main()

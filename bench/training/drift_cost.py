"""What counting the traffic costs: CPU time per text, beside that of the forward pass."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle
from polyhead_server.drift.monitor import DriftMonitor
from polyhead_server.engines import open_engine
from polyhead_server.engines.collate import pad
from polyhead_server.inference import postprocessing
from polyhead_server.inference.model import Model
from polyhead_server.inference.novelty import load_novelty
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.inference.types import Entry, Flow, Result, Timings, TokenizedText
from polyhead_server.settings import Settings

# Texts of the batch whose forward pass is timed, a full one of the server, and tokens of each.
_TEXTS, _TOKENS = 16, 32
_ROUNDS = 50


def cost(path: Path, variant: str) -> dict[str, float]:
    """Times a forward pass of a batch, and the counting of full batches and of single texts, in us per text.

    Each is the fastest of many rounds. Counting includes novelty if the bundle has it.
    """
    return asyncio.run(_cost(path, variant))


async def _cost(path: Path, variant: str) -> dict[str, float]:
    source = bundle.load(path)
    manifest = source.manifest
    engine = open_engine(source, "onnx", "cpu", variant)
    tokenizer = Tokenizer(source.file("tokenizer.json"), manifest.max_tokens, 1000)
    model = Model(source, tokenizer, engine, (), max_batch_tokens=4096, novelty=load_novelty(source))
    ids = list(range(100, 100 + _TOKENS))
    batch = pad([ids] * _TEXTS, manifest.pad_token_id)
    forward = []
    for _ in range(_ROUNDS):
        begin = time.thread_time()
        outputs = engine.run(*batch)
        forward.append((time.thread_time() - begin) / _TEXTS)
    rows = postprocessing.postprocess(manifest.heads, outputs)
    loop = asyncio.get_running_loop()
    entries = [Entry(Flow(), TokenizedText((ids,), _TOKENS), ids, loop.create_future(), None, 0, 0, 0) for _ in rows]
    timings = Timings(0, 0, 0, 0, _TEXTS, 0, 0)
    found = [Result(row, entry.tokens, timings) for row, entry in zip(rows, entries, strict=True) if row is not None]
    # A clock that stands still leaves nothing out; the CPU time of the monitor's own bound is not counted.
    times: dict[str, list[float]] = {}
    for name, size in (("batches", _TEXTS), ("singles", 1)):
        monitor = DriftMonitor(Settings(bundle=path), cpu_clock=lambda: 0.0)
        observe = monitor.watch(model)
        if observe is None:
            raise SystemExit(f"{path} has no reference")
        times[name] = []
        for _ in range(_ROUNDS):
            begin = time.thread_time()
            for _ in range(256 // size):
                observe(entries[:size], found[:size])
            times[name].append((time.thread_time() - begin) / 256)
    engine.close()
    tokenizer.close()
    figures = {"forward_pass": forward, **times}
    fastest = {f"{name}_us": round(1e6 * float(np.min(values)), 2) for name, values in figures.items()}
    share = round(max(fastest["batches_us"], fastest["singles_us"]) / fastest["forward_pass_us"], 5)
    return {"texts": _TEXTS, "tokens": _TOKENS, **fastest, "share": share}

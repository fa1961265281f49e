"""How fast training is, against a bare torch loop over the same batches, and how much of its work is padding.

    python bench/training/throughput.py CONFIG.toml [--steps 40] [--rounds 5] [--output bench/results/training.json]

Both loops train the same parts of the same model on the same batches, in turns. The bare loop has the batches ready as
tensors, one cross-entropy, a backward pass, clipping and a fused AdamW, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Read once, when torch is imported; as polyhead-train sets it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from accelerate import Accelerator
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from polyhead_training.data.collation import Batch, EncodedRows
from polyhead_training.data.preparation import prepare
from polyhead_training.data.sampling import Sampler
from polyhead_training.loop.distillation import base_embeddings
from polyhead_training.loop.loss import Objective
from polyhead_training.loop.stages import Stage
from polyhead_training.loop.step import Stepper
from polyhead_training.model import PolyheadModel
from polyhead_training.train import build_model
from torch.nn import functional


def main() -> None:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="configuration of a run; its last stage is what is measured")
    parser.add_argument("--steps", type=int, default=40, help="steps of a round (default: 40)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each loop, in turns (default: 5)")
    parser.add_argument("--output", type=Path, default=Path("bench/results/training.json"), help="JSON to write")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="override a field, key=value")
    arguments = parser.parse_args()
    config = read_config(arguments.config, arguments.overrides)
    figures = measure(config, arguments.steps, arguments.rounds)
    figures |= {"command": " ".join(["python", *sys.argv]), "machine": _machine()}
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def measure(config: Config, steps: int, rounds: int) -> dict[str, Any]:
    """Times both loops in turns; returns tokens a second and the padding share of a whole epoch."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=config.training.mixed_precision)
    prepared = prepare(config)
    rows = prepared.splits["train"]
    lengths = [len(ids) for ids in rows.ids]
    sampler = Sampler(
        rows.sources, lengths, rows.labelled(), config.data, config.training.batch_size, config.training.seed
    )
    epoch = sampler.epoch(0)
    chosen = epoch[:steps]
    tokens = sum(lengths[row] for step in chosen for row in step)
    model, twin = (build_model(config, prepared.backbone, prepared.data.heads).to(accelerator.device) for _ in range(2))
    with TemporaryDirectory() as folder:
        ours = _our_loop(config, model, rows, chosen, Path(folder), accelerator, prepared.data.heads)
    bare = _bare_loop(config, twin, [rows.batch(step, accelerator.device) for step in chosen], accelerator)
    seconds: dict[str, list[float]] = {"polyhead": [], "bare": []}
    for number in range(rounds + 1):
        for name, run in (("polyhead", ours), ("bare", bare)):
            began = time.perf_counter()
            run()
            # The first round warms up.
            seconds[name] += [time.perf_counter() - began] if number else []
    places = sum(max(lengths[row] for row in step) * len(step) for step in epoch)
    return {
        "steps": steps,
        "tokens_per_second": {name: round(tokens / statistics.median(found)) for name, found in seconds.items()},
        "share_of_bare": {
            "median": round(statistics.median(b / a for a, b in zip(*seconds.values(), strict=True)), 3),
            "rounds": [round(b / a, 3) for a, b in zip(*seconds.values(), strict=True)],
        },
        "padding_share_of_an_epoch": round(1 - sum(lengths) / places, 4),
    }


def _our_loop(  # noqa: PLR0917
    config: Config,
    model: PolyheadModel,
    rows: EncodedRows,
    steps: Sequence[Sequence[int]],
    folder: Path,
    accelerator: Accelerator,
    heads: Any,
) -> Callable[[], None]:
    stage = Stage(model, config.training.stages[-1], len(steps))
    chosen = sorted({row for step in steps for row in step})
    base = None
    if config.training.distillation and stage.trains_embedding:
        # Of the rows that are used; the rest of the file stays zero.
        part = EncodedRows(
            [rows.ids[row] for row in chosen], rows.labels[chosen], rows.pad_token_id, [0] * len(chosen), []
        )
        found = base_embeddings(folder, model, part, config.training.batch_size, accelerator)
        base = _Lookup(found, {row: place for place, row in enumerate(chosen)})
    stepper = Stepper(
        config=config.training,
        stage=stage,
        model=model,
        objective=Objective(heads, config.training, rows.labels).to(accelerator.device),
        accelerator=accelerator,
        rows=rows,
        base=base,  # type: ignore[arg-type]  # it has the one method that is called
    )

    def run() -> None:
        stepper.scheduler.last_epoch = 0  # every run repeats the stage from its first step
        for step in steps:
            stepper.take(step, False, str)

    return run


class _Lookup:
    """Embeddings before training of some of the rows."""

    def __init__(self, found: Any, places: dict[int, int]) -> None:
        self._found = found
        self._places = places

    def batch(self, rows: Sequence[int], device: torch.device) -> torch.Tensor:
        found: torch.Tensor = self._found.batch([self._places[row] for row in rows], device)
        return found


def _bare_loop(
    config: Config, model: PolyheadModel, batches: Sequence[Batch], accelerator: Accelerator
) -> Callable[[], None]:
    Stage(model, config.training.stages[-1], len(batches)).begin_step(len(batches))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def run() -> None:
        for batch in batches:
            with accelerator.autocast():
                logits = model(batch.input_ids, batch.attention_mask).logits
            loss = sum(functional.cross_entropy(*_as_softmax(found.float())) for found in logits.values())
            loss.backward()  # type: ignore[union-attr]
            torch.nn.utils.clip_grad_norm_(trained, config.training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

    return run


def _machine() -> dict[str, Any]:
    threads = torch.get_num_threads()
    return {"platform": platform.platform(), "cores": os.cpu_count(), "threads": threads, "torch": torch.__version__}


def _as_softmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two logits of a sigmoid's one, and labels; which ones costs nothing."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)  # (B, 2)
    return logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device)


if __name__ == "__main__":
    main()

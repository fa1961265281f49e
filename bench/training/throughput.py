"""Training throughput relative to a plain PyTorch loop over the same batches, and the padding of an epoch.

    python -m bench.training.throughput training/configs/clothing.toml --output bench/results/training_throughput.json
    python -m bench.training.throughput training/demo/config.toml --steps 3 --rounds 1 --output /tmp/quick.json

Both loops train the same parameters of the same model on the same batches, in interleaved rounds. The plain loop has
its batches as tensors in memory and does one cross-entropy, a backward pass, clipping and a fused AdamW step, and
nothing else.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# torch reads it once, at import; polyhead-train sets it to the same value.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from accelerate import Accelerator
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from polyhead_training.data.collation import Batch, EncodedRows
from polyhead_training.data.dataset import read_data
from polyhead_training.data.preparation import prepare
from polyhead_training.data.sampling import Sampler
from polyhead_training.loop.distillation import base_embeddings
from polyhead_training.loop.loss import Objective
from polyhead_training.loop.stages import Stage
from polyhead_training.loop.step import Stepper
from polyhead_training.model import PolyheadModel
from polyhead_training.train import build_model
from torch.nn import functional

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("config", type=Path, help="training configuration; its last stage is measured")
    parser.add_argument("--steps", type=int, default=40, help="steps per round (default: 40)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each loop (default: 5)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a field of the configuration",
    )
    add_output_flag(parser, Path("bench/results/training_throughput.json"))
    arguments = parser.parse_args()
    config = read_config(arguments.config, arguments.overrides)
    figures = measure(config, arguments.steps, arguments.rounds)
    figures = {
        **results.provenance(("polyhead", "torch", "transformers")),
        "threads": torch.get_num_threads(),
        **figures,
    }
    print(json.dumps(figures, indent=2))
    results.write(arguments.output, figures)


def measure(config: Config, steps: int, rounds: int) -> dict[str, Any]:
    """Times both loops in interleaved rounds; returns tokens per second, efficiency and the padding of an epoch."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=config.training.mixed_precision)
    prepared = prepare(config, read_data(config))
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
        trainer = _training_loop(config, model, rows, chosen, Path(folder), accelerator, prepared.data.heads)
    baseline = _plain_loop(config, twin, [rows.batch(step, accelerator.device) for step in chosen], accelerator)
    seconds: dict[str, list[float]] = {"polyhead": [], "baseline": []}
    for number in range(rounds + 1):
        for name, run in (("polyhead", trainer), ("baseline", baseline)):
            began = time.perf_counter()
            run()
            # The first round is a warm-up.
            seconds[name] += [time.perf_counter() - began] if number else []
    padded_tokens = sum(max(lengths[row] for row in step) * len(step) for step in epoch)
    return {
        "steps": steps,
        "tokens_per_second": {name: round(tokens / statistics.median(found)) for name, found in seconds.items()},
        "rounds": rounds,
        "efficiency": results.spread([b / a for a, b in zip(*seconds.values(), strict=True)]),
        "epoch_padding": round(1 - sum(lengths) / padded_tokens, 4),
    }


def _training_loop(  # noqa: PLR0917
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
        # Only the rows of the measured steps are embedded.
        part = EncodedRows(
            [rows.ids[row] for row in chosen], rows.labels.rows(chosen), rows.pad_token_id, [0] * len(chosen), []
        )
        found = base_embeddings(folder, model, part, config.training.batch_size, accelerator)
        base = _Lookup(found, {row: index for index, row in enumerate(chosen)})
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
    """Embeddings before training of the rows of the measured steps."""

    def __init__(self, found: Any, indices: dict[int, int]) -> None:
        self._found = found
        self._indices = indices

    def batch(self, rows: Sequence[int], device: torch.device) -> torch.Tensor:
        found: torch.Tensor = self._found.batch([self._indices[row] for row in rows], device)
        return found


def _plain_loop(
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


def _as_softmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Converts the logit of a sigmoid head into two logits and adds labels; their values do not affect the speed."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)  # (B, 2)
    return logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device)


if __name__ == "__main__":
    main()

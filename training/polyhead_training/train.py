"""A training run from a configuration to a run directory.

::

    Config --> backbone, rows --> model --stages--> trained model --evaluate--> scores --> run directory
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError

from .backbone import Backbone, find_backbone
from .batching import EncodedRows, encode_rows
from .checkpoint import EVALUATION_NAME, METRICS_NAME, staged_run, write_json, write_run
from .config import Config, HeadConfig
from .data import Data, Row, read_data
from .errors import BackboneError
from .evaluate import Scores, evaluate
from .loop import Loop
from .model import PolyheadModel
from .stages import check_stages


def train(
    config: Config, destination: Path, max_steps: int | None = None, say: Callable[[str], None] = print
) -> dict[str, Scores]:
    """Trains, evaluates, and writes a run directory.

    Args:
        config: What to train, on what, and how.
        destination: The run directory; a run that stands there already is replaced.
        max_steps: Steps after which training ends early; None for no such end.
        say: Takes lines for the terminal.

    Returns:
        The scores by split (``validation``, ``test``) and head.

    Raises:
        TrainingError: The configuration, the data, the backbone or the destination cannot be used.
    """
    accelerator = _start(config)
    with staged_run(destination) as folder:
        data = read_data(config)
        say(f"rows: {len(data.train):,} train, {len(data.validation):,} validation, {len(data.test):,} test")
        backbone = find_backbone(config)
        model = build_model(config, backbone, data.heads).to(accelerator.device)
        check_stages(config, model)
        training, validation, test = (
            _encode(config, backbone, data, rows) for rows in (data.train, data.validation, data.test)
        )
        loop = Loop(
            config=config.training,
            heads=data.heads,
            model=model,
            accelerator=accelerator,
            train=training,
            validation=validation,
            metrics=folder / METRICS_NAME,
            max_steps=max_steps,
            say=say,
        )
        scores = {"validation": loop.run()}
        if data.test:
            scores["test"] = evaluate(model, test, data.heads, config.training.batch_size)
        write_json(
            folder / EVALUATION_NAME,
            {split: {name: score.to_json() for name, score in heads.items()} for split, heads in scores.items()},
        )
        write_run(folder, config, data.heads, model, backbone.tokenizer)
    return scores


def build_model(config: Config, backbone: Backbone, heads: Sequence[HeadConfig]) -> PolyheadModel:
    """The backbone with pooling and fresh heads on it.

    Args:
        config: Pooling and token limit.
        backbone: The pretrained part.
        heads: The heads with their labels.

    Raises:
        BackboneError: The weights cannot be read.
    """
    try:
        return PolyheadModel.from_backbone(
            backbone.folder,
            pooling=config.model.pooling,
            embedding_pooling=config.model.embedding_pooling,
            normalize=config.model.normalize,
            max_tokens=config.model.max_tokens,
            pad_token_id=backbone.pad_token_id,
            heads=[
                head.model_dump(mode="json", include={"name", "kind", "labels", "hidden_size", "dropout"})
                for head in heads
            ],
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise BackboneError(backbone.reference, f"its weights cannot be read: {error}") from error


def _start(config: Config) -> Accelerator:
    precision = config.training.mixed_precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise config.error("training.mixed_precision", "'fp16' needs a GPU, and there is none: use 'bf16' or 'no'")
    set_seed(config.training.seed)
    accelerator = Accelerator(mixed_precision=precision)
    if accelerator.num_processes > 1:
        raise config.error(
            "", f"{accelerator.num_processes} processes were started: training runs in one, without a launcher"
        )
    return accelerator


def _encode(config: Config, backbone: Backbone, data: Data, rows: Sequence[Row]) -> EncodedRows:
    return encode_rows(rows, data.heads, backbone.tokenizer, config.model.max_tokens, backbone.pad_token_id)

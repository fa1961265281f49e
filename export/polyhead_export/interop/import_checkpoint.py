"""Imports a checkpoint of another project as a run directory, to be exported and served without training.

::

    SentenceTransformer    --modules.json--> pooling, length --+
    sequence classifier    --config.json---> labels, head -----+--> model --compared with the original--> RUN_DIR
    their backbone, tokenizer --open_backbone------------------+
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyhead_training.backbone import open_backbone
from polyhead_training.config import Config, DataConfig, ModelConfig, TrainingConfig
from polyhead_training.runs.run_directory import staged_run, write_run
from pydantic import ValidationError

from .checkpoint import CheckpointError, ImportedModel
from .import_classifier import DEFAULT_HEAD, FAMILIES, read_classifier
from .import_sentence_transformers import read_modules, read_sentence_transformer


def import_checkpoint(
    reference: str, destination: Path, name: str | None, report: Callable[[str], None], head: str | None = None
) -> Path:
    """Writes a run directory with the outputs of a checkpoint, without training.

    A SentenceTransformer becomes a run without heads and with the same embedding. A sequence classifier becomes a run
    with the softmax head ``topic`` and the same logits; its embedding is the mean of its token vectors, scaled to unit
    length. One difference remains: special tokens that are spelled out in a text are treated as text.

    Args:
        reference: A folder, or a hub id.
        destination: The run directory; an existing run is replaced, any other directory is an error.
        name: Name of the model; defaults to the last part of ``reference``.
        report: Called with each line of progress.
        head: Name of a classifier's head; defaults to ``topic``.

    Returns:
        ``destination``.

    Raises:
        CheckpointError: The checkpoint is of another kind, or has a part that a run directory cannot represent.
        BackboneError: It is not found, damaged or pickled, or its family is not supported.
        RunError: ``destination`` is not a run directory, or cannot be written.
    """
    name = name or Path(reference).resolve().name
    with staged_run(destination) as folder:
        imported = _read(reference, head, report)
        config = _config(reference, name, imported)
        write_run(folder, config, imported.heads, imported.model, imported.tokenizer)
    report(f"{name}: token limit {imported.model.config.max_tokens}")
    return destination


def _read(reference: str, head: str | None, report: Callable[[str], None]) -> ImportedModel:
    root = Path(reference)
    # A SentenceTransformer saved before 2021 keeps its backbone in a subfolder.
    nested = read_modules(reference, root)["Transformer"] if (root / "modules.json").is_file() else ""
    backbone = open_backbone(str(root / nested) if nested else reference, None, Path())
    root = root if nested else backbone.folder
    if (root / "modules.json").is_file():
        if head is not None:
            reason = "is a SentenceTransformer, which has no heads"
            raise CheckpointError(reference, reason, "leave out --head, or import a classifier")
        return read_sentence_transformer(reference, root, backbone, report)
    architectures = backbone.config.architectures
    if not architectures:
        reason = "config.json does not name its architecture"
        hint = f'add "architectures": ["CLASS"] to it, where CLASS is one of {", ".join(FAMILIES)}'
        raise CheckpointError(reference, reason, hint)
    if architectures[0] not in FAMILIES:
        reason = f"is neither a SentenceTransformer (no modules.json) nor a sequence classifier ({architectures[0]})"
        raise CheckpointError(reference, reason, "train heads on it with polyhead-train, as model.backbone")
    return read_classifier(reference, backbone, architectures[0], head or DEFAULT_HEAD, report)


def _config(reference: str, name: str, imported: ImportedModel) -> Config:
    """Builds the configuration of a training run with the same model, without data and without stages."""
    model_config = imported.model.config
    settings: dict[str, Any] = {
        "backbone": reference,
        "pooling": model_config.pooling,
        "embedding_pooling": model_config.embedding_pooling,
        "normalize": model_config.normalize,
        "max_tokens": model_config.max_tokens,
    }
    try:
        # Only training requires heads and data, so these two are set without validation.
        model = ModelConfig(**settings).model_copy(update={"heads": imported.heads})
        data = DataConfig.model_construct(train=())
        return Config(name=name, model=model, data=data, training=TrainingConfig(stages=()))
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))
        hint = "choose another name with --name" if field == "name" else "choose another checkpoint"
        raise CheckpointError(reference, f"{field} {fault['input']!r}: {fault['msg']}", hint) from None

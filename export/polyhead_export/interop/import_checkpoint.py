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
from polyhead_training.config import Config, DataConfig
from polyhead_training.model_config import ModelConfig
from polyhead_training.runs.run_directory import staged_run, write_run
from polyhead_training.training_config import TrainingConfig
from pydantic import ValidationError

from .checkpoint import CheckpointError, ImportedModel
from .import_classifier import DEFAULT_HEAD, FAMILIES, read_classifier
from .import_sentence_transformers import read_sentence_transformer
from .modules import read_modules
from .setfit import is_setfit, read_head


def import_checkpoint(
    reference: str, destination: Path, name: str | None, report: Callable[[str], None], head: str | None = None
) -> Path:
    """Writes a run directory with the outputs of a checkpoint, without training.

    A SentenceTransformer becomes a run without heads and with the same embedding; a SetFit model becomes one with its
    head, too. A sequence classifier becomes a run with the same logits and the head ``topic``, which is softmax,
    multilabel or regression as its ``problem_type`` says; its embedding is the mean of its token vectors, scaled to
    unit length. One difference remains: special tokens that are spelled out in a text are treated as text.

    Args:
        reference: A folder, or a hub id.
        destination: The run directory; an existing run is replaced, any other directory is an error.
        name: Name of the model; defaults to the last part of ``reference``.
        report: Called with each line of progress.
        head: Name of the head of a classifier or SetFit model; defaults to ``topic``.

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
    modules = read_modules(reference, root) if (root / "modules.json").is_file() else []
    nested = bool(modules) and modules[0].folder != root
    backbone = open_backbone(str(modules[0].folder) if nested else reference, None, Path())
    root = root if nested else backbone.folder
    if (root / "modules.json").is_file():
        if is_setfit(root):
            linear = read_head(reference, root, head or DEFAULT_HEAD)
            return read_sentence_transformer(reference, root, backbone, report, linear)
        if head is not None:
            reason = "is a SentenceTransformer, which has no heads"
            raise CheckpointError(reference, reason, "leave out --head, or import a classifier")
        return read_sentence_transformer(reference, root, backbone, report)
    architectures = backbone.config.architectures
    if not architectures:
        reason = "config.json does not name its architecture"
        hint = f'add "architectures": ["CLASS"] to it, where CLASS is one of {", ".join(FAMILIES)}'
        raise CheckpointError(reference, reason, hint)
    if architectures[0] not in FAMILIES and architectures[0].endswith("ForSequenceClassification"):
        reason = f"is a {architectures[0]}, whose head a run cannot represent"
        hint = f"supported are {', '.join(FAMILIES)}; or train heads on its backbone with polyhead-train"
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
        "normalize": model_config.normalize,
        "max_tokens": model_config.max_tokens,
        "prompts": model_config.prompts,
    }
    try:
        # Only training requires heads, data and a single pooling, so these are set without validation.
        update = {"heads": imported.heads, "embedding_pooling": model_config.embedding_pooling}
        model = ModelConfig(**settings).model_copy(update=update)
        data = DataConfig.model_construct(train=())
        return Config(name=name, model=model, data=data, training=TrainingConfig(stages=()))
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))
        hint = "choose another name with --name" if field == "name" else "choose another checkpoint"
        raise CheckpointError(reference, f"{field} {fault['input']!r}: {fault['msg']}", hint) from None

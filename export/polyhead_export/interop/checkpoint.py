"""Checkpoints of other projects: what the importers of a classifier and of a SentenceTransformer share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from polyhead_training.backbone import Backbone
from polyhead_training.config import HeadConfig
from polyhead_training.model import PolyheadModel
from polyhead_training.tokenization import encode
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from polyhead_export.errors import ExportError
from polyhead_export.golden import golden_texts

# Chosen far above the effect of the order of additions on a logit in fp32, and far below that of a wrong layer.
MAX_DIFFERENCE = 1e-4
LOADING_ERRORS = (OSError, RuntimeError, SafetensorError, ValueError)
# Fields of a classifier's configuration about its head; a run directory describes its heads in run.json.
_HEAD_FIELDS = frozenset({"_name_or_path", "architectures", "id2label", "label2id", "num_labels", "problem_type"})


class CheckpointError(ExportError):
    """A checkpoint cannot be imported.

    Attributes:
        reference: The folder or hub id of the checkpoint.
        reason: What is wrong.
        hint: How to fix it.
    """

    exit_code = 2

    def __init__(self, reference: str, reason: str, hint: str) -> None:
        super().__init__(f"checkpoint {reference}: {reason}; {hint}")
        self.reference = reference
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True)
class ImportedModel:
    """A checkpoint converted to a polyhead model.

    Attributes:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer, with padding and truncation off.
        heads: The heads with their labels.
    """

    model: PolyheadModel
    tokenizer: Tokenizer
    heads: tuple[HeadConfig, ...] = ()


def build_model(reference: str, backbone: Backbone, **settings: Any) -> PolyheadModel:
    """Builds a polyhead model on a checkpoint's backbone, in evaluation mode.

    Args:
        reference: The checkpoint, for error messages.
        backbone: Its backbone.
        settings: Arguments of ``PolyheadModel.from_backbone``.

    Raises:
        CheckpointError: The weights cannot be read.
    """
    try:
        model = PolyheadModel.from_backbone(backbone.folder, pad_token_id=backbone.pad_token_id, **settings)
    except LOADING_ERRORS as error:
        raise unreadable_weights(reference, error) from error
    kept = {key: value for key, value in model.config.backbone.items() if key not in _HEAD_FIELDS}
    model.config.backbone = kept
    return cast(PolyheadModel, model.eval())


def require_same_outputs(reference: str, outputs: str, difference: float) -> None:
    """Rejects a model whose outputs differ from the checkpoint's.

    Args:
        reference: The checkpoint.
        outputs: What was compared: ``embeddings`` or ``logits``.
        difference: The largest difference; NaN is rejected too.

    Raises:
        CheckpointError: The difference exceeds ``MAX_DIFFERENCE``.
    """
    if not difference <= MAX_DIFFERENCE:
        reason = f"its {outputs} and those of the run differ by {difference:.3g} (limit {MAX_DIFFERENCE:g})"
        raise CheckpointError(reference, reason, "nothing was written; report this with the checkpoint's name")


def load_original_tokenizer(reference: str, backbone: Backbone) -> Any:
    """Loads the tokenizer with transformers, which applies ``tokenizer_config.json``.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(backbone.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the libraries involved raise errors of many types
        hint = "save it again with AutoTokenizer's save_pretrained"
        raise CheckpointError(reference, f"its tokenizer cannot be loaded ({first_line(error)})", hint) from error


def require_same_tokens(reference: str, backbone: Backbone, original: Any, max_tokens: int) -> None:
    """Rejects a checkpoint whose ``tokenizer.json`` alone gives other tokens than all of its files together.

    Raises:
        CheckpointError: Quotes a text whose tokens differ.
    """
    texts = texts_without_special_tokens(original, max_tokens)
    for text, ids in zip(texts, encode(backbone.tokenizer, texts, max_tokens), strict=True):
        if original(text, truncation=True, max_length=max_tokens)["input_ids"] != ids:
            reason = f"tokenizer.json and tokenizer_config.json give different tokens for {text[:40]!r}"
            hint = "load it with AutoTokenizer and save it again with save_pretrained, if its outputs are correct"
            raise CheckpointError(reference, reason, hint)


def texts_without_special_tokens(original: Any, max_tokens: int) -> list[str]:
    """Returns the golden texts that spell out no special token, which other programs do not treat as text."""
    special = original.all_special_tokens
    return [text for text in golden_texts(max_tokens) if not any(token in text for token in special)]


def read_module_settings(reference: str, path: Path) -> dict[str, Any]:
    """Reads a module's settings; a missing file means none, as in sentence-transformers.

    Raises:
        CheckpointError: The file is damaged.
    """
    if not path.is_file():
        return {}
    content = read_json(reference, path)
    if not isinstance(content, dict):
        raise damaged_file(reference, path.name)
    return content


def read_json(reference: str, path: Path) -> Any:
    """Reads a JSON file of a checkpoint.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise damaged_file(reference, path.name) from None


def damaged_file(reference: str, file: str) -> CheckpointError:
    """Error for a file that does not have the format of sentence-transformers."""
    return CheckpointError(reference, f"{file} is not a valid sentence-transformers file", "fetch the checkpoint again")


def unreadable_weights(reference: str, error: Exception) -> CheckpointError:
    """Error for weights that cannot be read."""
    reason = f"its weights cannot be read ({first_line(error)})"
    return CheckpointError(reference, reason, "fetch the checkpoint again")


def first_line(error: Exception) -> str:
    """First line of an error's message; the name of its type when the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

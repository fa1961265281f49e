"""Checkpoints of other projects: what the importers of a classifier and of a SentenceTransformer share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from polyhead_training.backbone import Backbone
from polyhead_training.checkpoint_tokenizer import control_tokens, input_tokens
from polyhead_training.errors import first_line
from polyhead_training.model import PolyheadModel
from polyhead_training.model_config import HeadConfig
from polyhead_training.tokenization import encode, unread_texts
from polyhead_training.weights import WeightsError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer

from polyhead_export.errors import ExportError
from polyhead_export.golden import golden_texts

# Chosen far above the effect of the order of additions on a logit in fp32, and far below that of a wrong layer.
MAX_DIFFERENCE = 1e-4
# Relative; far below the effect of a text on any output of a trained model.
_MIN_VARIATION = 1e-5
# Added tokens in one text of the comparison; few enough for the shortest token limit.
_TOKENS_PER_TEXT = 2
# As in the configuration of training.
_MIN_TOKENS = 8
# transformers reports a limit of 1e30 for a tokenizer without one.
_NO_LIMIT = 1e9
# Added tokens named in a message.
_MAX_SHOWN = 10
# Share of the texts of the comparison above which a tokenizer that reads none of their words is reported.
_MAX_UNREAD = 0.5
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
    except WeightsError as error:
        raise CheckpointError(reference, error.reason, error.hint) from error
    kept = {key: value for key, value in model.config.backbone.items() if key not in _HEAD_FIELDS}
    model.config.backbone = kept
    return cast(PolyheadModel, model.eval())


def require_same_outputs(reference: str, outputs: str, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Rejects a model whose outputs differ from the checkpoint's, or are the same for every text.

    Args:
        reference: The checkpoint.
        outputs: What is compared: ``embeddings`` or ``logits``.
        actual: The model's output for each text, (1, N).
        expected: The checkpoint's outputs for the same texts.

    Returns:
        The largest difference of any number; relative for numbers above 1.

    Raises:
        CheckpointError: The difference exceeds ``MAX_DIFFERENCE``, an output is not a number, or no text changes it.
    """
    ours, theirs = torch.cat(list(actual)), torch.cat(list(expected))  # (texts, N)
    if not torch.isfinite(theirs).all():
        reason = f"its {outputs} are not numbers (NaN or infinity)"
        raise CheckpointError(reference, reason, "its weights are damaged or its training diverged; choose another")
    difference = float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max())
    if not difference <= MAX_DIFFERENCE:
        reason = f"its {outputs} and those of the run differ by {difference:.3g} (limit {MAX_DIFFERENCE:g})"
        raise CheckpointError(reference, reason, "nothing was written; report this with the checkpoint's name")
    if float((theirs - theirs[0]).abs().max()) <= _MIN_VARIATION * max(1.0, float(theirs.abs().max())):
        reason = f"its {outputs} are the same for every text"
        raise CheckpointError(reference, reason, "its weights or its tokenizer are damaged; fetch the checkpoint again")
    return difference


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


def token_limit(reference: str, backbone: Backbone, stated: float, source: str, report: Callable[[str], None]) -> int:
    """Returns the token limit of a checkpoint: the stated one, or the number of its positions if that is smaller.

    Args:
        reference: The checkpoint.
        backbone: Its backbone.
        stated: The limit that a file states; transformers states a huge number where there is none.
        source: The field that states it.
        report: Called with a line where the limit is lowered.

    Raises:
        CheckpointError: The limit leaves no room for a text.
    """
    positions = backbone.usable_positions
    limit = int(min(stated, positions))
    if limit < _MIN_TOKENS:
        field = source if stated <= positions else "max_position_embeddings"
        reason = f"its max_tokens {limit} (from {field}) leave no room for a text"
        raise CheckpointError(reference, reason, f"correct {field}, at least {_MIN_TOKENS} tokens are required")
    if positions < stated < _NO_LIMIT:
        report(f"{reference}: {source} {int(stated)} exceeds its {positions} positions, which become the token limit")
    return limit


def require_same_tokens(
    reference: str, backbone: Backbone, original: Any, max_tokens: int, report: Callable[[str], None]
) -> list[str]:
    """Rejects a checkpoint whose ``tokenizer.json`` alone gives other tokens than all of its files together.

    Args:
        reference: The checkpoint.
        backbone: Its backbone, whose tokenizer is compared.
        original: The tokenizer as transformers loads it.
        max_tokens: Maximum tokens per text.
        report: Called with a line about the added tokens, and with a warning where few words are read.

    Returns:
        The texts that were compared.

    Raises:
        CheckpointError: Quotes a text whose tokens differ.
    """
    kept = input_tokens(backbone.tokenizer)
    texts = comparison_texts(backbone.tokenizer, original, max_tokens)
    encoded_texts = list(encode(backbone.tokenizer, texts, max_tokens))
    for text, ids in zip(texts, encoded_texts, strict=True):
        encoded = original(text, truncation=True, max_length=max_tokens)
        if encoded["input_ids"] != ids:
            reason = f"tokenizer.json and tokenizer_config.json give different tokens for {text[:40]!r}"
            hint = "load it with AutoTokenizer and save it again with save_pretrained, if its outputs are correct"
            raise CheckpointError(reference, reason, hint)
        if hasattr(backbone.config, "type_vocab_size") and any(encoded.get("token_type_ids", ())):
            reason = "its tokenizer gives a text other token types than 0, which a run does not"
            raise CheckpointError(reference, reason, "choose another checkpoint")
    unread = unread_texts(backbone.tokenizer, texts, encoded_texts)
    if len(unread) > _MAX_UNREAD * len(texts):
        report(
            f"warning: {reference}: its tokenizer reads {len(unread)} of {len(texts)} texts as unknown tokens alone; "
            "use it only for texts in the language that it was made for"
        )
    if kept:
        shown = ", ".join(kept[:_MAX_SHOWN]) + (f" and {len(kept) - _MAX_SHOWN} more" * (len(kept) > _MAX_SHOWN))
        report(f"{reference}: in a text, its added tokens stay single tokens: {shown}")
    return texts


def comparison_texts(tokenizer: Tokenizer, original: Any, max_tokens: int) -> list[str]:
    """Returns the texts for the comparison: the golden texts, and texts with the added tokens of either tokenizer.

    Tokens that control the model, such as ``[SEP]``, are left out: a run reads them as text, transformers does not.
    """
    control = set(control_tokens(tokenizer))
    added = dict.fromkeys([*input_tokens(tokenizer), *original.get_added_vocab(), *original.all_special_tokens])
    tokens = [token for token in added if token not in control]
    texts = [text for text in golden_texts(max_tokens) if not any(token in text for token in control)]
    for start in range(0, len(tokens), _TOKENS_PER_TEXT):
        few = tokens[start : start + _TOKENS_PER_TEXT]
        texts += [f" {' a '.join(few)} ", "".join(f"a{token}b" for token in few), " ".join(few).upper()]
    return texts


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

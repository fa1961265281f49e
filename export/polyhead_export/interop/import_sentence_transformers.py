"""Imports a SentenceTransformer with the modules Transformer, Pooling and optionally Normalize, without heads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from polyhead_training.backbone import Backbone
from polyhead_training.model import PolyheadModel
from polyhead_training.model_types import EmbeddingPoolingKind
from polyhead_training.tokenization import encode, pad
from polyhead_training.weights import load_pretrained
from tokenizers import Tokenizer, normalizers
from transformers import AutoModel

from .checkpoint import (
    CheckpointError,
    ImportedModel,
    build_model,
    damaged_file,
    load_original_tokenizer,
    read_json,
    read_module_settings,
    require_same_outputs,
    require_same_tokens,
    token_limit,
)

_MODULE_PREFIX = "sentence_transformers."
_KINDS = ("Transformer", "Pooling", "Normalize")
_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Settings of a Transformer module and the only value that can be imported; every other setting changes the embedding.
_TEXT_SETTINGS: dict[str, Any] = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_SUPPORTED_SETTINGS = frozenset({"max_seq_length", "do_lower_case", "unpad_inputs"})
_NORMALIZE_SETTINGS = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}


def read_sentence_transformer(
    reference: str, root: Path, backbone: Backbone, report: Callable[[str], None]
) -> ImportedModel:
    """Reads a SentenceTransformer and verifies that the converted model has the same embeddings.

    Args:
        reference: The folder or hub id.
        root: The folder that holds ``modules.json``.
        backbone: Its backbone and tokenizer.
        report: Called with each line of progress.

    Raises:
        CheckpointError: The model has modules or settings that a run directory cannot represent, or damaged files.
    """
    modules = read_modules(reference, root)
    _require_plain_model(reference, root, report)
    pooling = _read_pooling(reference, root / modules["Pooling"])
    settings = _read_transformer_settings(reference, backbone.folder)
    normalize = "Normalize" in modules
    if normalize:
        normalize_settings = read_module_settings(reference, root / modules["Normalize"] / "config.json")
        _require_supported(reference, "Normalize", normalize_settings, _NORMALIZE_SETTINGS)
    original_tokenizer = load_original_tokenizer(reference, backbone)
    length, source = settings.get("max_seq_length"), "max_seq_length"
    if not length:
        length, source = original_tokenizer.model_max_length, "model_max_length of tokenizer_config.json"
    max_tokens = token_limit(reference, backbone, length, source, report)
    texts = require_same_tokens(reference, backbone, original_tokenizer, max_tokens, report)
    model = build_model(
        reference, backbone, pooling=pooling, embedding_pooling=pooling, normalize=normalize, max_tokens=max_tokens
    )
    lowercase = bool(settings.get("do_lower_case"))
    if lowercase:
        _add_lowercase(backbone.tokenizer)
    _compare_embeddings(reference, model, backbone, original_tokenizer, texts, lowercase=lowercase)
    normalized = "normalized" if normalize else "not normalized"
    report(f"{reference}: SentenceTransformer, pooling {pooling}, {normalized}, without heads")
    return ImportedModel(model, backbone.tokenizer)


def read_modules(reference: str, root: Path) -> dict[str, str]:
    """Returns the folder of each module by its kind, in order: Transformer, Pooling and optionally Normalize.

    Raises:
        CheckpointError: ``modules.json`` is damaged, or lists other modules.
    """
    content = read_json(reference, root / "modules.json")
    try:
        modules = {_kind(str(entry["type"])): str(entry["path"]) for entry in content}
    except (KeyError, TypeError):
        raise damaged_file(reference, "modules.json") from None
    if unsupported := [kind for kind in modules if kind not in _KINDS]:
        hint = "only Transformer, Pooling and Normalize are supported; choose another checkpoint"
        raise CheckpointError(reference, f"has the module {unsupported[0]}", hint)
    if tuple(modules) not in (_KINDS, _KINDS[:2]) or len(content) != len(modules):
        reason = f"its modules are {', '.join(_kind(entry['type']) for entry in content)}"
        raise CheckpointError(reference, reason, "supported are Transformer, Pooling and optionally Normalize")
    if any(Path(path).is_absolute() or ".." in Path(path).parts for path in modules.values()):
        raise CheckpointError(reference, "modules.json points outside the checkpoint", "do not use it")
    return modules


def _kind(class_name: str) -> str:
    """Class name without its module for classes of sentence-transformers, whose modules vary between releases."""
    return class_name.rpartition(".")[2] if class_name.startswith(_MODULE_PREFIX) else class_name


def _require_plain_model(reference: str, root: Path, report: Callable[[str], None]) -> None:
    """Rejects a model that processes a text in other ways than its modules."""
    settings = read_module_settings(reference, root / "config_sentence_transformers.json")
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        hint = "supported are a SentenceTransformer and a sequence classifier of single texts"
        raise CheckpointError(reference, f"is a {kind}", hint)
    if settings.get("truncate_dim") is not None:
        reason = f"truncates its embeddings to {settings['truncate_dim']} numbers"
        raise CheckpointError(reference, reason, "remove truncate_dim from config_sentence_transformers.json")
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if text}
    default = settings.get("default_prompt_name")
    if default in prompts:
        reason = f"prepends the prompt {prompts[default]!r} to every text, which a run does not"
        hint = "set default_prompt_name to null in config_sentence_transformers.json, and prepend it in your client"
        raise CheckpointError(reference, reason, hint)
    if prompts:
        report(f"{reference}: its prompts ({', '.join(prompts)}) are not imported; prepend them in your client")


def _read_pooling(reference: str, folder: Path) -> EmbeddingPoolingKind:
    settings = read_module_settings(reference, folder / "config.json")
    if not settings.get("include_prompt", True):
        raise CheckpointError(reference, "its pooling excludes prompts (include_prompt)", "choose another checkpoint")
    configured = settings.get("pooling_mode") or [mode for key, mode in _POOLING_KEYS.items() if settings.get(key)]
    # sentence-transformers defaults to the mean.
    modes = [configured] if isinstance(configured, str) else list(configured) or ["mean"]
    if modes == ["cls"]:
        return "cls"
    if modes == ["mean"]:
        return "mean"
    pooling = " and ".join(map(str, modes))
    raise CheckpointError(reference, f"its pooling is {pooling}", "only cls or mean is supported")


def _read_transformer_settings(reference: str, folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("sentence_*_config.json"))
    settings = read_module_settings(reference, files[0]) if files else {}
    others = {key: value for key, value in settings.items() if key not in _SUPPORTED_SETTINGS}
    _require_supported(reference, "Transformer", others, _TEXT_SETTINGS)
    return settings


def _require_supported(reference: str, module: str, settings: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if value and value != supported.get(key):
            hint = "a run cannot represent it: choose another checkpoint"
            raise CheckpointError(reference, f"its module {module} has {key} = {json.dumps(value)}", hint)


def _add_lowercase(tokenizer: Tokenizer) -> None:
    """Lowercases texts before the tokenizer's own normalization, as ``do_lower_case`` does in sentence-transformers."""
    others = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])


def _compare_embeddings(
    reference: str,
    model: PolyheadModel,
    backbone: Backbone,
    original_tokenizer: Any,
    texts: Sequence[str],
    *,
    lowercase: bool,
) -> None:
    """Rejects a model whose embeddings differ from the checkpoint's.

    The expected embedding is computed as in sentence-transformers: with the checkpoint's own tokenizer and backbone, as
    the first token's vector or the mean over the tokens, scaled to unit length if the modules say so.

    Raises:
        CheckpointError: The embeddings differ.
    """
    original = load_pretrained(AutoModel, backbone.folder)
    config = model.config
    actual, expected = [], []
    for text, ids in zip(texts, encode(backbone.tokenizer, texts, config.max_tokens), strict=True):
        original_text = text.lower() if lowercase else text
        batch = original_tokenizer(original_text, truncation=True, max_length=config.max_tokens, return_tensors="pt")
        with torch.inference_mode():
            hidden = original(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            pooled = hidden[:, 0] if config.embedding_pooling == "cls" else hidden.mean(dim=1)  # (1, H)
            expected.append(torch.nn.functional.normalize(pooled, dim=-1) if config.normalize else pooled)
            actual.append(model(*map(torch.from_numpy, pad([ids], config.pad_token_id))).sentence_embedding)  # (1, H)
    require_same_outputs(reference, "embeddings", actual, expected)

"""Imports a SentenceTransformer with its pooling and the modules after it; that of a SetFit model with its head."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from polyhead_bundle.manifest import check_prompts
from polyhead_training.backbone import Backbone
from polyhead_training.model import PolyheadModel
from polyhead_training.sentence_transformer import POOLING_KEYS
from polyhead_training.tokenization import encode, overlong_prompts, pad
from polyhead_training.weights import load_pretrained
from tokenizers import Tokenizer, normalizers
from transformers import AutoModel, PreTrainedModel

from polyhead_export.golden import GOLDEN_TEXTS

from .checkpoint import (
    CheckpointError,
    ImportedModel,
    build_model,
    load_original_tokenizer,
    read_module_settings,
    require_same_outputs,
    require_same_tokens,
    token_limit,
)
from .modules import Layer, load_layers, read_layer, read_modules, require_supported
from .setfit import LinearHead, load_head

# Names of one release of sentence-transformers for another's.
_POOLING_ALIASES = {"mean_sqrt_len_tokens": "mean_sqrt_len"}
# Settings of a Transformer module and the only value that can be imported; every other setting changes the embedding.
_TEXT_SETTINGS: dict[str, Any] = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
# Each is put before one text of the comparison.
_MAX_COMPARED_PROMPTS = 8
_SUPPORTED_SETTINGS = frozenset({"max_seq_length", "do_lower_case", "unpad_inputs"})


def read_sentence_transformer(
    reference: str,
    root: Path,
    backbone: Backbone,
    report: Callable[[str], None],
    head: LinearHead | None = None,
) -> ImportedModel:
    """Reads a SentenceTransformer and verifies that the converted model has the same embeddings.

    Args:
        reference: The folder or hub id.
        root: The folder that holds ``modules.json``.
        backbone: Its backbone and tokenizer.
        report: Called with each line of progress.
        head: The head of a SetFit model.

    Raises:
        CheckpointError: The model has modules or settings that a run directory cannot represent, or damaged files.
    """
    modules = read_modules(reference, root)
    prompts = _read_prompts(reference, _require_plain_model(reference, root), report)
    pooling = _read_pooling(reference, modules[1].folder)
    settings = _read_transformer_settings(reference, backbone.folder)
    layers = [read_layer(reference, module) for module in modules[2:] if module.kind != "Dropout"]
    normalize = bool(layers) and layers[-1].settings["kind"] == "normalize"
    layers = layers[: len(layers) - normalize]
    # SetFit scales the embedding that its head reads, also where the model itself does not.
    normalize = normalize or (head is not None and head.is_normalized)
    original_tokenizer = load_original_tokenizer(reference, backbone)
    length, source = settings.get("max_seq_length"), "max_seq_length"
    if not length:
        length, source = original_tokenizer.model_max_length, "model_max_length of tokenizer_config.json"
    max_tokens = token_limit(reference, backbone, length, source, report)
    for name, tokens in overlong_prompts(backbone.tokenizer, prompts, max_tokens).items():
        reason = f"its prompt {name} has {tokens} tokens, which leaves none of {max_tokens} for a text"
        raise CheckpointError(reference, reason, "remove it from config_sentence_transformers.json")
    texts = require_same_tokens(reference, backbone, original_tokenizer, max_tokens, report)
    # sentence-transformers puts a prompt before a text before it is tokenized, too.
    texts = [*texts, *(prefix + GOLDEN_TEXTS[-1] for prefix in islice(prompts.values(), _MAX_COMPARED_PROMPTS))]
    model = build_model(
        reference,
        backbone,
        # A run without heads has no use for their pooling; these have no weights.
        pooling="embedding" if head else "cls" if pooling == "cls" else "mean",
        embedding_pooling=pooling,
        embedding_layers=[layer.settings for layer in layers],
        normalize=normalize,
        max_tokens=max_tokens,
        prompts=prompts,
        heads=[head.settings] if head else [],
    )
    load_layers(reference, model, layers)
    if head:
        load_head(reference, model, head)
    lowercase = bool(settings.get("do_lower_case"))
    if lowercase:
        _add_lowercase(backbone.tokenizer)
    original = Original(load_pretrained(AutoModel, backbone.folder), pooling, layers, normalize, head)
    _compare(reference, model, backbone, original, original_tokenizer, texts, lowercase=lowercase)
    normalized = "normalized" if normalize else "not normalized"
    between = f", {len(layers)} layers after it" if layers else ""
    heads = f"with the head {head.config.name}: {', '.join(head.config.labels or ())}" if head else "without heads"
    report(f"{reference}: SentenceTransformer, pooling {pooling}{between}, {normalized}, {heads}")
    return ImportedModel(model, backbone.tokenizer, (head.config,) if head else ())


def _require_plain_model(reference: str, root: Path) -> dict[str, Any]:
    """Returns the general settings; rejects a model that processes a text in other ways than its modules."""
    settings = read_module_settings(reference, root / "config_sentence_transformers.json")
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        hint = "supported are a SentenceTransformer and a sequence classifier of single texts"
        raise CheckpointError(reference, f"is a {kind}", hint)
    if settings.get("truncate_dim") is not None:
        reason = f"truncates its embeddings to {settings['truncate_dim']} numbers"
        raise CheckpointError(reference, reason, "remove truncate_dim from config_sentence_transformers.json")
    return settings


def _read_prompts(reference: str, settings: dict[str, Any], report: Callable[[str], None]) -> dict[str, str]:
    """Returns the prompts that a run can hold, and reports the others.

    sentence-transformers puts its default prompt before a text when none is named; a run has no default.

    Raises:
        CheckpointError: They are not a table of texts, or too many.
    """
    given, prompts = settings.get("prompts") or {}, {}
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        hint = "correct config_sentence_transformers.json"
        raise CheckpointError(reference, "its prompts are not a table of texts by name", hint)
    if empty := [name for name, text in given.items() if not text]:
        report(f"{reference}: its prompts without text ({', '.join(empty)}) are not imported; name none instead")
    for name, text in given.items():
        if not text:
            continue
        try:
            check_prompts({name: text})
        except ValueError as error:
            report(f"{reference}: {error}; it is not imported")
        else:
            prompts[name] = text
    try:
        check_prompts(prompts)
    except ValueError as error:
        raise CheckpointError(reference, str(error), "remove some of them") from None
    default = settings.get("default_prompt_name")
    if isinstance(default, str) and default in prompts:
        same = f"name it in requests (prompt={default!r}) for the same embeddings"
        report(f"{reference}: its default prompt {default!r} is not put before a text by default; {same}")
    return prompts


def _read_pooling(reference: str, folder: Path) -> str:
    """Returns the pooling; several kinds are concatenated in this order, joined by ``+``."""
    settings = read_module_settings(reference, folder / "config.json")
    if not settings.get("include_prompt", True):
        raise CheckpointError(reference, "its pooling excludes prompts (include_prompt)", "choose another checkpoint")
    configured = settings.get("pooling_mode") or [mode for key, mode in POOLING_KEYS.items() if settings.get(key)]
    # sentence-transformers defaults to the mean.
    modes = [configured] if isinstance(configured, str) else list(configured) or ["mean"]
    modes = [_POOLING_ALIASES.get(mode, mode) for mode in map(str, modes)]
    if unknown := [mode for mode in modes if mode not in POOLING_KEYS.values()]:
        supported = ", ".join(POOLING_KEYS.values())
        raise CheckpointError(reference, f"its pooling is {unknown[0]}", f"supported are {supported}")
    return "+".join(modes)


def _read_transformer_settings(reference: str, folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("sentence_*_config.json"))
    settings = read_module_settings(reference, files[0]) if files else {}
    others = {key: value for key, value in settings.items() if key not in _SUPPORTED_SETTINGS}
    require_supported(reference, "Transformer", others, _TEXT_SETTINGS)
    return settings


def _add_lowercase(tokenizer: Tokenizer) -> None:
    """Lowercases texts before the tokenizer's own normalization, as ``do_lower_case`` does in sentence-transformers."""
    others = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])


class Original(NamedTuple):
    """A checkpoint as sentence-transformers computes it.

    Attributes:
        backbone: Its backbone.
        pooling: Kinds of its pooling, joined by ``+``.
        layers: Its modules after the pooling, without a last Normalize.
        normalize: Whether it ends in Normalize.
        head: The head of a SetFit model.
    """

    backbone: PreTrainedModel
    pooling: str
    layers: Sequence[Layer]
    normalize: bool
    head: LinearHead | None

    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        """Computes the embedding, (1, E), of one text's (1, T) token ids."""
        hidden = self.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]  # (T, H)
        weights = torch.arange(1.0, len(hidden) + 1).unsqueeze(-1)  # (T, 1)
        pooled = {
            "cls": hidden[0],
            "max": hidden.max(dim=0).values,
            "mean": hidden.mean(dim=0),
            "mean_sqrt_len": hidden.sum(dim=0) / len(hidden) ** 0.5,
            "weightedmean": (hidden * weights).sum(dim=0) / weights.sum(),
            "lasttoken": hidden[-1],
        }
        vector = torch.cat([pooled[kind] for kind in self.pooling.split("+")]).unsqueeze(0)
        for layer in self.layers:
            vector = layer.compute(vector)
        return torch.nn.functional.normalize(vector, dim=-1) if self.normalize else vector


def _compare(  # noqa: PLR0917
    reference: str,
    model: PolyheadModel,
    backbone: Backbone,
    original: Original,
    original_tokenizer: Any,
    texts: Sequence[str],
    *,
    lowercase: bool,
) -> None:
    """Rejects a model whose embeddings, or the logits of whose head, differ from the checkpoint's.

    The expected values are computed as in sentence-transformers, with the checkpoint's own tokenizer and backbone.

    Raises:
        CheckpointError: They differ.
    """
    config = model.config
    actual: dict[str, list[torch.Tensor]] = defaultdict(list)
    expected: dict[str, list[torch.Tensor]] = defaultdict(list)
    for text, ids in zip(texts, encode(backbone.tokenizer, texts, config.max_tokens), strict=True):
        original_text = text.lower() if lowercase else text
        batch = original_tokenizer(original_text, truncation=True, max_length=config.max_tokens, return_tensors="pt")
        with torch.inference_mode():
            embedding = original.embedding(batch["input_ids"])  # (1, E)
            outputs = model(*map(torch.from_numpy, pad([ids], config.pad_token_id)))
            expected["embeddings"].append(embedding)
            actual["embeddings"].append(outputs.sentence_embedding)
            if original.head:
                expected["logits"].append(embedding @ original.head.weight.T + original.head.bias)  # (1, logits)
                actual["logits"] += outputs.logits.values()
    for name, found in actual.items():
        require_same_outputs(reference, name, found, expected[name])

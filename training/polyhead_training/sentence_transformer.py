"""What a SentenceTransformer does besides its backbone, and a training run does only if it is configured so.

::

    modules.json, 1_Pooling/config.json, ... of a backbone's folder --ignored_settings--> sentences for the data report
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .model_config import ModelConfig

# Keys of a Pooling module up to sentence-transformers 5.3, which every reader supports, and the kind of each. Newer
# releases write pooling_mode, a name or a list of names.
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Modules that a run has, too.
_KNOWN = frozenset({"Transformer", "Pooling", "Normalize", "Dropout"})


def ignored_settings(folder: Path, config: ModelConfig) -> Iterator[str]:
    """Yields a sentence for each setting of a SentenceTransformer that the configuration leaves at another default.

    Files that are damaged, or of another format, say nothing.

    Args:
        folder: The folder of the backbone.
        config: The configuration of the model.
    """
    modules = _read(folder / "modules.json")
    if not isinstance(modules, list):
        return
    found = [module for module in modules if isinstance(module, dict)]
    for module in found:
        kind = str(module.get("type")).rpartition(".")[2]
        if kind == "Pooling" and "embedding_pooling" not in config.model_fields_set:
            pooling = _pooling(_read_table(folder / str(module.get("path")) / "config.json"))
            if pooling not in ("mean", "?"):
                yield (
                    f"model.backbone pools its sentence embedding by {pooling}, and model.embedding_pooling is mean by "
                    "default; set model.embedding_pooling"
                )
        elif kind not in _KNOWN:
            yield (
                f"model.backbone has the module {kind} after its pooling, which training leaves out; "
                "polyhead-export import keeps it, without training"
            )
    if any(_read_table(path).get("do_lower_case") is True for path in folder.glob("sentence_*_config.json")):
        yield "model.backbone lowercases texts before its tokenizer reads them, which training leaves out"
    prompts = _read_table(folder / "config_sentence_transformers.json").get("prompts")
    named = [name for name, text in prompts.items() if text] if isinstance(prompts, dict) else []
    if named and "prompts" not in config.model_fields_set:
        yield f"model.backbone names the prompts {', '.join(named)}; set model.prompts to use them"


def _pooling(settings: dict[str, Any]) -> str:
    """Returns the kinds of a pooling, joined by ``+``; a question mark if the file names none."""
    modes = settings.get("pooling_mode") or [mode for key, mode in POOLING_KEYS.items() if settings.get(key) is True]
    kinds = [modes] if isinstance(modes, str) else list(map(str, modes)) if isinstance(modes, list) else []
    return "+".join(kind.removesuffix("_tokens") for kind in kinds) or "?"


def _read_table(path: Path) -> dict[str, Any]:
    content = _read(path)
    return content if isinstance(content, dict) else {}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None

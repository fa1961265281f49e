"""Writes the sentence embedding, without heads, as a sentence-transformers folder.

::

    Run --> backbone's weights, tokenizer, pooling, length --> DESTINATION --> SentenceTransformer(DESTINATION).encode()

text-embeddings-inference, vLLM and llama.cpp read such a folder too, so the pooling's keys and the modules' names are
those of older releases. One difference remains: a special token that is spelled out in a text, such as ``[SEP]``, is
text in polyhead and a special token there; the format cannot express the former.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from polyhead_bundle import replace_directory, staging_folder
from polyhead_training.model import PolyheadConfig, PolyheadModel
from polyhead_training.runs.run_directory import Run, write_json
from polyhead_training.sentence_transformer import POOLING_KEYS
from polyhead_training.tokenization import load_tokenizer
from tokenizers import Tokenizer

from polyhead_export.errors import ExportError
from polyhead_export.onnx_export import describe_embedding

_POOLING = "1_Pooling"
_NORMALIZE = "2_Normalize"
_CARD_DATA = ModelCardData(
    library_name="sentence-transformers",
    pipeline_tag="sentence-similarity",
    tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "polyhead"],
)
# The last tag of the card's front matter identifies a folder that this module wrote.
_MARK = "\n- polyhead\n"
_OWN_FILES = frozenset(
    {
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        f"{_POOLING}/config.json",
        f"{_NORMALIZE}/config.json",
    }
)
_README = """\
---
{front_matter}
---

# {name}

The sentence embedding of a polyhead model, without its heads: {dimensions} numbers, pooling `{pooling}`, {scaling}.
Texts are truncated to {max_tokens} tokens, special tokens included.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("this-folder")
print(model.encode(["The parcel came two days early."]))
```

The embeddings are those of the original run, with one exception: polyhead treats special tokens that are spelled out in
a text ({special}) as text, sentence-transformers treats them as special tokens.
"""


class InterchangeError(ExportError):
    """A run cannot be written in another library's format.

    Attributes:
        path: The run, or the destination.
        reason: What is wrong, and how to fix it.
    """

    exit_code = 2

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def write_sentence_transformer(run: Run, destination: Path) -> None:
    """Writes a run's sentence embedding as a sentence-transformers folder; the same run gives the same bytes.

    Embeddings, (B, H), are those of ``run.model``, also for truncated texts. The exception is texts that spell out a
    special token; see the module's documentation.

    Args:
        run: The run.
        destination: The folder. A folder that this function wrote is replaced, an empty one is filled, any other is an
            error. Nothing is left there when writing fails.

    Raises:
        InterchangeError: The format cannot express the embedding or the tokenizer, or ``destination`` is not empty.
        OSError: ``destination`` cannot be written.
    """
    special = require_writable(run, destination)
    with _staged(destination) as folder:
        _write_backbone(run.model, folder)
        _write_tokenizer(run, special, folder)
        _write_modules(run.model.config, describe_embedding(run.model.config).pooling, folder)
        _write_readme(run, special, folder)


def require_writable(run: Run, destination: Path) -> dict[str, str]:
    """Checks that ``write_sentence_transformer`` can write a run, without writing it.

    Returns:
        The tokenizer's special tokens, by their names in transformers.

    Raises:
        InterchangeError: The run cannot be written; the error names the reason.
    """
    _require_free(destination.resolve())
    if run.model.config.embedding_layers or "+" in run.model.config.embedding_pooling:
        reason = "its embedding was imported with modules of its own or with several poolings"
        raise InterchangeError(run.path, f"{reason}; use the folder that it was imported from")
    if describe_embedding(run.model.config).pooling == "cls_mean":
        reason = "its embedding shares the heads' pooling cls_mean, which no other program supports"
        hint = 'train again with model.embedding_pooling = "mean" or "cls"'
        raise InterchangeError(run.path, f"{reason}; {hint}")
    return _special_tokens(run)


@contextmanager
def _staged(destination: Path) -> Iterator[Path]:
    """Yields a folder that replaces ``destination`` when the block succeeds, and is removed when it fails."""
    target = destination.resolve()
    _require_free(target)
    with staging_folder(target) as staging:
        yield staging
        # Another process may have written to the destination in the meantime.
        _require_free(target)
        replace_directory(staging, target)


def _require_free(target: Path) -> None:
    if not target.exists() or (target.is_dir() and (not any(target.iterdir()) or _is_own(target))):
        return
    raise InterchangeError(
        target, "already exists, was not written by --format, and was left unchanged; remove it or choose another"
    )


def _is_own(target: Path) -> bool:
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    card = target / "README.md"
    return files <= _OWN_FILES and card.is_file() and _MARK in card.read_text("utf-8", errors="replace")


def _write_backbone(model: PolyheadModel, folder: Path) -> None:
    model.backbone.save_pretrained(folder)
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_bytes())
    # The folder that the backbone was once loaded from.
    config.pop("_name_or_path", None)
    write_json(path, config)


def _special_tokens(run: Run) -> dict[str, str]:
    """Returns the tokenizer's special tokens, by their names in transformers."""
    tokenizer = load_tokenizer(run.tokenizer_path)
    first, last = _outer_tokens(run, tokenizer)
    padding = tokenizer.id_to_token(run.model.config.pad_token_id)
    if padding is None:
        reason = f"lacks the model's padding token {run.model.config.pad_token_id}; train again"
        raise InterchangeError(run.tokenizer_path, reason)
    names = {"cls_token": first, "sep_token": last, "pad_token": padding}
    if unknown := getattr(tokenizer.model, "unk_token", None):
        names["unk_token"] = unknown
    # A token that the tokenizer lacks would be added to it, and would change the tokens of texts.
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    if masks := sorted(special & {"[MASK]", "<mask>"}):
        names["mask_token"] = masks[0]
    return names


def _outer_tokens(run: Run, tokenizer: Tokenizer) -> tuple[str, str]:
    """Returns the tokens before and after every text."""
    tokens = tokenizer.encode("").tokens
    # With more than two, other programs truncate a text at another place.
    if len(tokens) != 2:
        reason = f"adds {len(tokens)} special tokens to a text, but other programs expect two"
        raise InterchangeError(run.tokenizer_path, f"{reason}; train on a backbone with another tokenizer")
    return tokens[0], tokens[1]


def _write_tokenizer(run: Run, special: dict[str, str], folder: Path) -> None:
    load_tokenizer(run.tokenizer_path).save(str(folder / "tokenizer.json"))
    settings = {
        # The only class that uses tokenizer.json as it is; the classes of the families rebuild it from their defaults.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": run.model.config.max_tokens,
        # The model is trained without token types.
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        **special,
    }
    write_json(folder / "tokenizer_config.json", settings)


def _write_modules(config: PolyheadConfig, pooling: str, folder: Path) -> None:
    kinds = {"": "Transformer", _POOLING: "Pooling", **({_NORMALIZE: "Normalize"} if config.normalize else {})}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": config.max_tokens, "do_lower_case": False})
    general: dict[str, Any] = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"}
    prompts: dict[str, Any] = {"prompts": config.prompts, "default_prompt_name": None}
    write_json(folder / "config_sentence_transformers.json", {**general, **prompts})
    for path in kinds:
        (folder / path).mkdir(exist_ok=True)
    size = int(config.backbone_config().hidden_size)
    modes = {key: mode == pooling for key, mode in POOLING_KEYS.items()}
    write_json(folder / _POOLING / "config.json", {"word_embedding_dimension": size, **modes, "include_prompt": True})
    if config.normalize:
        # Git and some archive formats drop an empty folder.
        write_json(folder / _NORMALIZE / "config.json", {})


def _write_readme(run: Run, special: dict[str, str], folder: Path) -> None:
    embedding = describe_embedding(run.model.config)
    text = _README.format(
        front_matter=_CARD_DATA.to_yaml(),
        name=run.name,
        dimensions=embedding.dimensions,
        pooling=embedding.pooling,
        scaling="scaled to unit length" if embedding.normalized else "not scaled",
        max_tokens=run.model.config.max_tokens,
        special=", ".join(f"`{token}`" for token in dict.fromkeys(special.values())),
    )
    (folder / "README.md").write_text(text, "utf-8")

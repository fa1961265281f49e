"""Weights of a checkpoint, checked so that an error names its cause: the file, the layer, and how to correct it.

transformers only warns about weights that are missing, superfluous or of another shape; it leaves layers at random
values, or drops them. Here each of these is an error.

::

    model.safetensors, or its shards --read_entries--> name, type and shape of each tensor
                                     --load_pretrained--> a model of transformers, fp32, whose weights are complete
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from .errors import first_line

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# Prefixes that torch.compile, DataParallel and DistributedDataParallel, FSDP and activation checkpointing add to names.
_WRAPPERS = r"(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)"
_WRAPPER_PREFIX = re.compile(rf"(?:^|(?<=\.))(?:{_WRAPPERS}\.)+")
_FLOAT_TYPES = frozenset({"F16", "BF16", "F32", "F64"})
# Buffers of older releases, which hold no weights.
_BUFFERS = ("position_ids", "token_type_ids")
# The pooler serves next-sentence prediction; a backbone may lack it.
_UNUSED_BY_BACKBONES = ("pooler.",)
# Tables that some checkpoints leave at zero.
_MAY_BE_ZERO = ("token_type_embeddings", "position_embeddings")
_FETCH_AGAIN = "fetch the checkpoint again"
_SAVE_AGAIN = "load it with the code that trained it, and save it again with save_pretrained"
_MERGE_ADAPTER = "merge the adapter into its base model with peft's merge_and_unload(), then save_pretrained()"
_TRAINED_BADLY = "its training diverged or its file is damaged: choose another checkpoint"


class WeightsError(ValueError):
    """The weights of a checkpoint cannot be used.

    Attributes:
        reason: The fault.
        hint: How to correct it.
    """

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(f"{reason}; {hint}")
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True)
class Entry:
    """Type, in the notation of safetensors, and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_entries(folder: Path) -> dict[str, Entry]:
    """Reads the names, types and shapes of a checkpoint's weights, without the prefixes of wrappers.

    Args:
        folder: A checkpoint with ``model.safetensors`` or with shards and their index.

    Raises:
        WeightsError: There are no such files, a file is not a safetensors file, or the weights are quantized or those
            of an adapter.
    """
    return {unwrapped(name): entry for name, entry in _read_all(folder).items()}


def _read_all(folder: Path) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for path in _weight_files(folder):
        entries.update(_read_file(path))
    if adapters := [name for name in entries if ".lora_" in name]:
        raise WeightsError(f"holds the weights of an adapter ({adapters[0]})", _MERGE_ADAPTER)
    quantized = [name for name, entry in entries.items() if _is_quantized(name, entry)]
    if quantized:
        name = min(quantized)
        reason = f"its weights are quantized ({name} has the type {entries[name].dtype})"
        raise WeightsError(reason, "use the checkpoint that it was quantized from, or dequantize it")
    return entries


def unwrapped(name: str) -> str:
    """Removes the prefixes that torch.compile, DistributedDataParallel and others add to the names of weights."""
    return _WRAPPER_PREFIX.sub("", name)


def require_full_checkpoint(folder: Path, config: Mapping[str, Any]) -> None:
    """Rejects an adapter, a quantized checkpoint, and one whose model transformers does not compute.

    Args:
        folder: The checkpoint.
        config: The content of its ``config.json``; empty if there is none.

    Raises:
        WeightsError: The checkpoint is one of these.
    """
    if (folder / "adapter_config.json").is_file():
        raise WeightsError("is an adapter such as LoRA (adapter_config.json), not a complete model", _MERGE_ADAPTER)
    if code := config.get("auto_map"):
        reason = f"its config.json refers to code of its own (auto_map: {json.dumps(code)}), which is never run"
        raise WeightsError(reason, "choose a checkpoint of a supported family that requires no remote code")
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        # transformers 5 computes absolute positions whatever this field says.
        reason = f"its positions are {positions!r} (position_embedding_type), which transformers no longer computes"
        raise WeightsError(reason, "choose a checkpoint with absolute positions")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown method") if isinstance(quantization, dict) else quantization
        reason = f"is quantized (quantization_config in config.json: {method})"
        raise WeightsError(reason, "use the checkpoint that it was quantized from, or dequantize it")


def load_pretrained(auto_class: Any, folder: Path, *, backbone_only: bool = True) -> PreTrainedModel:
    """Loads a model of transformers in fp32, in evaluation mode, and checks that all of its weights were read.

    Args:
        auto_class: ``AutoModel``, or another auto class of transformers.
        folder: A checkpoint with safetensors weights. Pickled weights are never read.
        backbone_only: Whether the model's own pooler is not used, and may be missing.

    Raises:
        WeightsError: A weight is missing, has another shape than ``config.json`` says, is not a number or is zero
            throughout; or the file holds layers that ``config.json`` does not describe.
    """
    # Without this mapping, transformers would leave the layers with these names at random values.
    renamed = {f"^{re.escape(name)}$": unwrapped(name) for name in _read_all(folder) if unwrapped(name) != name}
    try:
        model, report = auto_class.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            # Shapes are checked below, with an error that names them.
            ignore_mismatched_sizes=True,
            key_mapping=renamed or None,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise WeightsError(f"its weights cannot be read ({first_line(error)})", _FETCH_AGAIN) from error
    unused = _UNUSED_BY_BACKBONES if backbone_only else ()
    _require_shapes(report["mismatched_keys"], unused)
    _require_complete(model, report["missing_keys"], report["unexpected_keys"], unused)
    _require_numbers(model, unused)
    return cast(PreTrainedModel, model.eval())


def describe_foreign_content(path: Path) -> tuple[str, str] | None:
    """Recognizes a file that holds something else than its name says.

    Returns:
        What the file is and how to replace it; None for a file that looks like what it should be.
    """
    if path.is_symlink() and not path.exists():
        return f"{path.name} is a link to {path.readlink()}, which does not exist", _FETCH_AGAIN
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        return f"{path.name} is empty", _FETCH_AGAIN
    if head.startswith(b"version https://git-lfs"):
        return f"{path.name} is a Git LFS pointer, not the file itself", "run `git lfs pull` in its repository"
    # The first eight bytes of a safetensors file are a length, so they are not text.
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return f"{path.name} is a web page", "download the file itself, not the page that shows it"
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x1f\x8b")):
        hint = "load it where you trust it and write safetensors with save_pretrained"
        return f"{path.name} is an archive or a pickle, which is never read", hint
    return None


def _weight_files(folder: Path) -> list[Path]:
    whole, index = folder / WEIGHTS_NAME, folder / INDEX_NAME
    if whole.is_file() or whole.is_symlink():
        return [whole]
    if not index.is_file():
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        if others:
            hint = f"rename the file to {WEIGHTS_NAME} if it holds the model's weights"
            raise WeightsError(f"has no {WEIGHTS_NAME}, only {', '.join(others[:3])}", hint)
        if pickles := sorted(
            path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt"))
        ):
            hint = "load them where you trust them and write safetensors with save_pretrained"
            raise WeightsError(f"has only pickled weights ({pickles[0]}), which are never read", hint)
        raise WeightsError(f"has no weights ({WEIGHTS_NAME})", _FETCH_AGAIN)
    try:
        names = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (AttributeError, KeyError, TypeError, ValueError):
        found = describe_foreign_content(index)
        raise WeightsError(*(found or (f"{INDEX_NAME} is not a valid index of shards", _FETCH_AGAIN))) from None
    if outside := [name for name in names if Path(name).name != name]:
        raise WeightsError(f"{INDEX_NAME} names a file outside the checkpoint ({outside[0]!r})", "do not use it")
    if missing := [name for name in names if not (folder / name).exists()]:
        reason = f"lacks {len(missing)} of its {len(names)} files of weights, including {missing[0]}"
        raise WeightsError(reason, _FETCH_AGAIN)
    return [folder / name for name in names]


def _read_file(path: Path) -> dict[str, Entry]:
    if found := describe_foreign_content(path):
        raise WeightsError(*found)
    try:
        with safe_open(path, "pt") as stream:
            slices = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118 (not a dictionary)
            return {name: Entry(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        reason = f"its weights cannot be read ({path.name} is truncated or damaged: {first_line(error)})"
        raise WeightsError(reason, _FETCH_AGAIN) from error


def _is_quantized(name: str, entry: Entry) -> bool:
    return entry.dtype not in _FLOAT_TYPES and not name.endswith(_BUFFERS)


def _require_shapes(mismatched: Iterable[tuple[str, Any, Any]], unused: tuple[str, ...]) -> None:
    for name, actual, expected in sorted((str(name), tuple(a), tuple(b)) for name, a, b in mismatched):
        if not name.startswith(unused):
            reason = f"{name} has the shape {actual}, config.json describes {expected}"
            raise WeightsError(reason, "take config.json and the weights from the same checkpoint")


def _require_complete(model: Any, missing: Iterable[str], unexpected: Iterable[str], unused: tuple[str, ...]) -> None:
    base = f"{model.base_model_prefix}."
    of_base = getattr(model, model.base_model_prefix, model)
    parts = tuple(f"{name}." for name, _ in of_base.named_children() if not f"{name}.".startswith(_UNUSED_BY_BACKBONES))
    if lacking := sorted(name for name in missing if not name.startswith(unused)):
        reason = f"lacks {len(lacking)} of the weights of {type(model).__name__}, including {lacking[0]}"
        of_backbone = any(name.removeprefix(base).startswith(parts) for name in lacking)
        if of_backbone and (others := sorted(unexpected)):
            names = f"it has others, such as {others[0]}, of another architecture or saved under other names"
            raise WeightsError(f"{reason}; {names}", _SAVE_AGAIN)
        if of_backbone:
            raise WeightsError(reason, _FETCH_AGAIN)
        raise WeightsError(reason, "its head was not trained; choose another checkpoint")
    # Layers beyond those of config.json would be dropped.
    dropped = sorted(
        name for name in unexpected if name.removeprefix(base).startswith(parts) and not name.endswith(_BUFFERS)
    )
    if dropped:
        reason = f"has {len(dropped)} weights that config.json does not describe, including {dropped[0]}"
        raise WeightsError(reason, "correct config.json, for example its number of layers")


def _require_numbers(model: nn.Module, unused: tuple[str, ...]) -> None:
    for name, values in model.named_parameters():
        if name.startswith(unused):
            continue
        if not torch.isfinite(values).all():
            raise WeightsError(f"its weight {name} has values that are not numbers (NaN or infinity)", _TRAINED_BADLY)
        if values.dim() > 1 and not values.any() and not any(part in name for part in _MAY_BE_ZERO):
            raise WeightsError(
                f"its weight {name} is zero throughout, so it was never trained or written", _FETCH_AGAIN
            )

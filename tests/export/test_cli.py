"""``polyhead-export`` prints results to stdout and reports to stderr, and sets the documented exit codes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import polyhead_bundle as bundle
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from polyhead_bundle import Bundle, Check, atomic_directory
from polyhead_export import export, gate
from polyhead_export.cli import main

from tests.support.checkpoints import write_classifier


def _invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _error_line(result: Result) -> str:
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_lists_the_commands(arguments: list[str]) -> None:
    result = _invoke(*arguments)
    assert result.exit_code == 0
    starts = [line.strip() for line in result.stdout.splitlines()]
    assert any(line.startswith("polyhead-export RUN_DIR OUTPUT_DIR  ") for line in starts)
    assert any(line.startswith("polyhead-export verify BUNDLE  ") for line in starts)
    assert "polyhead-export runs/tickets bundles/tickets" in starts
    assert "Exit codes" in result.stdout


def test_version_is_printed() -> None:
    result = _invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"polyhead-export {version('polyhead')}\n")


@pytest.mark.parametrize("command", ["verify", "sign", "import", "export"])
def test_every_command_has_its_own_help(command: str) -> None:
    result = _invoke(command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


@pytest.mark.usefixtures("traced_once")
def test_failed_requested_variant_sets_the_exit_code(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "export.toml").write_text("[limits.int8]\ncosine_worst = 1e-9\n")
    result = _invoke(run_dir, tmp_path / "bundle", "--variant", "int8", "--config", tmp_path / "export.toml")
    assert (result.exit_code, result.stdout) == (3, f"{tmp_path / 'bundle'}\n")
    assert "variant int8 is left out: variant int8 failed its gate: cosine_distance.worst is" in result.stderr


@pytest.mark.usefixtures("traced_once")
def test_sentence_transformers_folder_is_written_beside_the_bundle(run_dir: Path, tmp_path: Path) -> None:
    result = _invoke(run_dir, tmp_path / "bundle", "--variant", "fp32", "--format", "sentence-transformers")
    assert result.stdout.split() == [str(tmp_path / "bundle"), str(tmp_path / "bundle-sentence-transformers")]
    assert (tmp_path / "bundle-sentence-transformers" / "modules.json").is_file()


def test_signature_is_written_beside_the_bundle_and_checked_first(bundle_dir: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "key.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    signed = Path(shutil.copytree(bundle_dir, tmp_path / "signed"))
    assert _invoke("sign", signed, tmp_path / "key.pem").stdout == f"{tmp_path / 'signed.sig'}\n"
    assert _invoke("verify", signed, "--public-key", tmp_path / "key.pub").exit_code == 0
    (tmp_path / "signed.sig").write_text("{}")
    assert _invoke("verify", signed, "--public-key", tmp_path / "key.pub").exit_code == 2
    assert _invoke("verify", signed, "--signature", tmp_path / "signed.sig").exit_code == 2


def test_invalid_checkpoint_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    result = _invoke("import", tmp_path / "nothing", tmp_path / "run")
    assert (result.exit_code, result.stdout) == (2, "")


def test_head_of_an_imported_classifier_is_named(tmp_path: Path) -> None:
    result = _invoke("import", write_classifier(tmp_path), tmp_path / "run", "--head", "mood")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'run'}\n")
    assert [head["name"] for head in json.loads((tmp_path / "run" / "run.json").read_bytes())["heads"]] == ["mood"]


def test_help_does_not_load_torch() -> None:
    program = "import sys, polyhead_export.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("arguments", [[], ["runs/tickets"], ["verify"], ["a", "b", "c"]])
def test_wrong_command_line_is_a_usage_error(arguments: list[str]) -> None:
    assert _invoke(*arguments).exit_code == 2


def test_export_prints_only_its_own_report(run_dir: Path, tmp_path: Path) -> None:
    program = "from polyhead_export.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, run_dir, tmp_path / "tiny"], check=True, capture_output=True, text=True
    )
    assert result.stdout == f"{tmp_path / 'tiny'}\n"
    first, second, *tables, writing, done = result.stderr.splitlines()
    assert first.startswith("gate: no evaluation data")
    assert second == "tiny: exporting the graph"
    # The random model predicts the same sentiment for every golden text.
    assert [re.split(":| in ", line)[0] for line in tables if not line.startswith(" ")] == [
        "graph exported",
        "variant fp32",
        "variant fp32 checked",
        "warning",
        "int8",
        "variant int8 made",
        "variant int8",
        "variant int8 checked",
    ]
    assert sum(line.split() == ["check", "value", "limit"] for line in tables) == 2
    assert sum(line.endswith("  ok") for line in tables) == 2 * 15
    assert writing == f"writing {tmp_path / 'tiny'}"
    assert done.startswith("done in ")


def test_verify_prints_only_the_path_of_the_bundle(bundle_dir: Path) -> None:
    result = _invoke("verify", bundle_dir)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{bundle_dir}\n"


def test_directory_that_is_not_a_run_is_a_usage_error(tmp_path: Path) -> None:
    result = _invoke(tmp_path / "nothing", tmp_path / "bundle")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is not a run directory" in _error_line(result)


def test_directory_that_is_not_a_bundle_is_a_usage_error(tmp_path: Path) -> None:
    result = _invoke("verify", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "this directory is not a bundle" in _error_line(result)


def test_damaged_bundle_is_a_usage_error(bundle_dir: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(bundle_dir, tmp_path / "damaged"))
    (damaged / "model.onnx").write_bytes(b"")
    result = _invoke("verify", damaged)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "model.onnx: has 0 bytes" in _error_line(result)


def test_failed_gate_exits_with_1(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "measure", lambda *_, **__: (Check("padding_invariance", 0.5, 1e-5),))
    result = _invoke("verify", bundle_dir)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "padding_invariance is 0.5 (limit 1e-05)" in result.stderr.splitlines()[-1]


def test_full_disk_is_a_one_line_error(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gate, "measure", fail)
    result = _invoke("verify", bundle_dir)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith(
        "polyhead-export: [Errno 28] No space left on device; existing files"
    )


@pytest.fixture
def ignored_sigterm() -> Iterator[None]:
    """Ignores SIGTERM, which would end the tests if the command did not handle it."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("ignored_sigterm")
def test_sigterm_leaves_no_partly_written_bundle(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged: list[Path] = []

    def write_copy(run_dir: Path, output_dir: Path, report: object, settings: object) -> Bundle:
        manifest = bundle.load(bundle_dir).manifest
        return bundle.write(output_dir, manifest, {name: bundle_dir / name for name in manifest.files})

    def terminate(staging: Path) -> None:
        staged.extend(tmp_path.iterdir())
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(export, "export", write_copy)
    monkeypatch.setattr(atomic_directory, "sync_tree", terminate)
    result = _invoke("run", tmp_path / "bundle")
    assert (result.exit_code, len(staged)) == (128 + signal.SIGTERM, 1)
    assert list(tmp_path.iterdir()) == []

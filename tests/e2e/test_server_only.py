"""A bundle is verified where it is served: with the packages of polyhead[server] and no others."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polyhead_bundle as bundle
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from polyhead_export.signing import sign

from tests.compat.recordings import VERSIONS, write_bundle
from tests.support.demo import BIN
from tests.support.extras import hide_all_but, requirements

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command in an environment with the packages of the server."""
    environment = {**os.environ, **hide_all_but(tmp_path / "modules", "server")}

    def call(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return call


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A bundle beside its signature, ``key.pub`` and ``other.pub``."""
    copy = write_bundle(VERSIONS[-1], tmp_path).rename(tmp_path / "served")
    for name in ("key", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pub").write_bytes(public)
    sign(copy, bundle.default_signature(copy), tmp_path / "key.pem")
    return copy


VERIFY = {"serve": ("polyhead-serve", "--check"), "export": ("polyhead-export", "verify")}


def test_environment_has_no_torch(run: Run) -> None:
    for module in ("torch", "transformers", "onnx", "pydantic", "rich", "model_signing"):
        done = run(sys.executable, "-c", f"import {module}")
        assert f"No module named '{module}'" in done.stderr
    assert run(sys.executable, "-c", "import numpy, onnxruntime, tokenizers, grpc, click").returncode == 0
    assert {"torch", "transformers"}.isdisjoint(requirements("server"))
    assert {"torch", "transformers", "onnx"} <= requirements("export")


@pytest.mark.parametrize("command", VERIFY)
def test_bundle_is_verified(run: Run, served: Path, command: str) -> None:
    program, option = VERIFY[command]
    key = served.parent / "key.pub"
    done = run(BIN / program, option, served, "--public-key", key)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    for line in (f"signature matches {key}", "files are unchanged", "golden texts, off by at most"):
        assert line in report
    assert ("skipped: the gate" in report) is (command == "export")


def _change_a_byte(served: Path) -> None:
    path = served / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _change_a_golden_answer(served: Path) -> None:
    """Keeps every hash correct, so that only the forward pass shows the difference."""
    found = bundle.load(served)

    variant = found.manifest.variants["fp32"]
    first = dataclasses.replace(variant.golden[0], embedding=tuple(-value for value in variant.golden[0].embedding))
    changed = dataclasses.replace(variant, golden=(first, *variant.golden[1:]))
    manifest = dataclasses.replace(found.manifest, variants={**found.manifest.variants, "fp32": changed})
    copies = served.parent / "copies"
    shutil.copytree(served, copies)
    bundle.write(served, manifest, {name: copies / name for name in manifest.files})


def _replace_the_graph(served: Path) -> None:
    found = bundle.load(served)
    copies = served.parent / "copies"
    shutil.copytree(served, copies)
    (copies / "model.onnx").write_bytes(b"not a graph")
    bundle.write(served, found.manifest, {name: copies / name for name in found.manifest.files})


@pytest.mark.parametrize("command", VERIFY)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change_a_byte, "was changed"),
        (_change_a_golden_answer, "golden"),
        (_replace_the_graph, "onnxruntime cannot load"),
    ],
)
def test_damaged_bundle_is_rejected(
    run: Run, served: Path, command: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(served)
    program, option = VERIFY[command]
    done = run(BIN / program, option, served)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", VERIFY)
def test_bundle_of_another_signer_is_rejected(run: Run, served: Path, command: str) -> None:
    program, option = VERIFY[command]
    done = run(BIN / program, option, served, "--public-key", served.parent / "other.pub")
    assert done.returncode == 2
    assert "served.sig: is not a signature of" in done.stderr


def test_server_does_not_start_with_a_bundle_of_another_signer(run: Run, served: Path) -> None:
    done = run(BIN / "polyhead-serve", served, "--listen", "127.0.0.1:0", "--public-key", served.parent / "other.pub")
    assert done.returncode == 2
    assert "served.sig: is not a signature of" in done.stderr


def test_check_covers_the_files_that_flags_name(run: Run, served: Path) -> None:
    keys = served.parent / "keys.toml"
    keys.write_text("keys = [\n")
    done = run(BIN / "polyhead-serve", "--check", served, "--api-keys", keys)
    assert (done.returncode, done.stdout) == (2, "")
    assert "keys.toml" in done.stderr


def test_limits_of_the_gate_require_torch(run: Run, served: Path) -> None:
    (served.parent / "export.toml").touch()
    done = run(BIN / "polyhead-export", "verify", served, "--config", served.parent / "export.toml")
    assert done.returncode == 2
    assert "pip install 'polyhead[export]'" in done.stderr


@pytest.mark.parametrize("arguments", [("export", "run", "bundle"), ("run", "bundle"), ("import", "checkpoint", "run")])
def test_command_that_requires_torch_names_the_extra(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(BIN / "polyhead-export", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "pip install 'polyhead[export]'" in line

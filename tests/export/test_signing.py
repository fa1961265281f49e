"""A signature is valid for exactly the signed files and only with the signer's key."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polyhead_bundle as bundle
import pytest
from polyhead_bundle import BundleError, SignatureError
from polyhead_export.signing import SigningError, sign

from tests.support.small_bundle import FILES, changed_manifest, rewrite_manifest, write_demo_bundle, write_sources

needs_model_signing = pytest.mark.skipif(
    importlib.util.find_spec("model_signing") is None,
    reason="model-signing is not installed; it comes with '.[signing]'",
)


class Signed(NamedTuple):
    """A bundle, its signature, and the keys."""

    bundle: Path
    signature: Path
    private_key: Path
    public_key: Path


def _make_keys(folder: Path, name: str, curve: str = "SECP256R1") -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(getattr(ec, curve)())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def verify_signature(path: Path, signature: Path, public_key: Path) -> None:
    bundle.verify_signature(bundle.load(path), public_key, signature)


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    private, public = _make_keys(tmp_path, "signer")
    path = write_demo_bundle(tmp_path).path
    signature = tmp_path / "demo.sig"
    sign(path, signature, private)
    return Signed(path, signature, private, public)


@needs_model_signing
def test_signed_bundle_verifies_and_is_still_a_bundle(signed: Signed) -> None:
    verify_signature(signed.bundle, signed.signature, signed.public_key)
    bundle.load(signed.bundle)


@needs_model_signing
def test_signature_names_every_file(signed: Signed) -> None:
    payload = json.loads(base64.b64decode(json.loads(signed.signature.read_bytes())["dsseEnvelope"]["payload"]))
    names = [resource["name"] for resource in payload["predicate"]["resources"]]
    assert names == sorted([*FILES, "bundle.json"])


@needs_model_signing
@pytest.mark.parametrize("curve", ["SECP384R1", "SECP521R1"])
def test_other_curves_sign_too(tmp_path: Path, curve: str) -> None:
    private, public = _make_keys(tmp_path, "signer", curve)
    path = write_demo_bundle(tmp_path).path
    sign(path, tmp_path / "demo.sig", private)
    verify_signature(path, tmp_path / "demo.sig", public)


@needs_model_signing
def test_bundle_and_signature_may_move(signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    signed.bundle.rename(tmp_path / "there" / "renamed")
    signed.signature.rename(tmp_path / "there" / "renamed.sig")
    monkeypatch.chdir(tmp_path / "there")
    verify_signature(Path("renamed"), Path("renamed.sig"), signed.public_key)


@needs_model_signing
def test_signature_is_replaced_and_nothing_else_is_left(signed: Signed) -> None:
    before = sorted(path.name for path in signed.signature.parent.iterdir())
    write_demo_bundle(signed.signature.parent, changed_manifest(name="second"))
    sign(signed.bundle, signed.signature, signed.private_key)
    verify_signature(signed.bundle, signed.signature, signed.public_key)
    assert sorted(path.name for path in signed.signature.parent.iterdir()) == before


@needs_model_signing
def test_signature_verifies_with_the_command_of_model_signing(signed: Signed) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed.bundle)]
    options = ["--signature", str(signed.signature), "--public_key", str(signed.public_key)]
    subprocess.run([*command, *options], check=True, capture_output=True)


def _change_a_file(signed: Signed) -> None:
    (signed.bundle / "model.onnx").write_bytes(b"Graph")


def _remove_a_file(signed: Signed) -> None:
    (signed.bundle / "model.onnx").unlink()


def _add_a_file_that_git_ignores(signed: Signed) -> None:
    (signed.bundle / ".gitignore").write_bytes(b"*")


def _rewrite_the_bundle(signed: Signed) -> None:
    """Keeps every hash correct, so that only the signature detects the change."""
    files = write_sources(signed.bundle.parent / "sources")
    files["model.onnx"].write_bytes(b"Graph")
    bundle.write(signed.bundle, changed_manifest(), files)


def _rewrite_the_manifest(signed: Signed) -> None:
    rewrite_manifest(signed.bundle / "bundle.json", lambda document: document.update(max_tokens=32))


def _use_another_key(signed: Signed) -> None:
    _, other = _make_keys(signed.bundle.parent, "other_signer")
    shutil.copyfile(other, signed.public_key)


def _forge_the_key_hint(signed: Signed) -> None:
    """Signs with another key and claims the signer's key."""
    real = json.loads(signed.signature.read_bytes())
    other_signer, _ = _make_keys(signed.bundle.parent, "other_signer")
    sign(signed.bundle, signed.signature, other_signer)
    forged = json.loads(signed.signature.read_bytes())
    forged["verificationMaterial"] = real["verificationMaterial"]
    signed.signature.write_text(json.dumps(forged))


def _change_the_payload(signed: Signed) -> None:
    _rewrite_the_manifest(signed)
    document = json.loads(signed.signature.read_bytes())
    other = signed.bundle.parent / "other.sig"
    sign(signed.bundle, other, _make_keys(signed.bundle.parent, "other_signer")[0])
    document["dsseEnvelope"]["payload"] = json.loads(other.read_bytes())["dsseEnvelope"]["payload"]
    signed.signature.write_text(json.dumps(document))


def _sign_without_the_manifest(signed: Signed) -> None:
    """Signs with model-signing itself and excludes a file."""
    from model_signing import hashing, signing

    config = hashing.Config().set_ignored_paths(paths=["bundle.json"])
    signer = signing.Config().use_elliptic_key_signer(private_key=signed.private_key)
    signer.set_hashing_config(config).sign(signed.bundle, signed.signature)


def _remove_the_signature(signed: Signed) -> None:
    signed.signature.unlink()


def _write_an_invalid_signature(signed: Signed) -> None:
    signed.signature.write_bytes(b"-----BEGIN PGP SIGNATURE-----")


def _write_an_empty_json_signature(signed: Signed) -> None:
    signed.signature.write_bytes(b"[]")


def _write_an_invalid_key(signed: Signed) -> None:
    signed.public_key.write_bytes(b"ssh-ed25519 AAAA")


def _remove_the_key(signed: Signed) -> None:
    signed.public_key.unlink()


ATTACKS: dict[Callable[[Signed], None], str] = {
    _change_a_file: r"model\.onnx: was changed",
    _remove_a_file: r"model\.onnx: is missing",
    _add_a_file_that_git_ignores: r"\.gitignore: is not listed",
    _rewrite_the_bundle: r"demo\.sig: is .*: bundle\.json differs from the signed file; fetch",
    _rewrite_the_manifest: r"demo\.sig: is not a signature of .*bundle\.json differs from the signed file",
    _use_another_key: r"demo\.sig: is not a signature of .* another key.*; fetch .* the public key is the signer's",
    _forge_the_key_hint: r"demo\.sig: is not a signature of .*: it was made with another key",
    _change_the_payload: r"demo\.sig: is not a signature of .*or its content was changed",
    _sign_without_the_manifest: r"demo\.sig: is not a signature of .*bundle\.json is not signed",
    _remove_the_signature: r"demo\.sig: is not a signature of .*No such file",
    _write_an_invalid_signature: r"demo\.sig: is not a signature of .*; fetch",
    _write_an_empty_json_signature: r"demo\.sig: is not a signature of .*; fetch",
    _write_an_invalid_key: r"signer\.pub: is not a usable public key; use a PEM file",
    _remove_the_key: r"signer\.pub: is not a usable public key.*No such file.*; use a PEM file",
}


@needs_model_signing
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__.strip("_"))
def test_unsigned_content_is_rejected(signed: Signed, attack: Callable[[Signed], None]) -> None:
    attack(signed)
    with pytest.raises(BundleError, match=ATTACKS[attack]):
        verify_signature(signed.bundle, signed.signature, signed.public_key)


def _edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Signed], None]:
    def edit(signed: Signed) -> None:
        document = json.loads(signed.signature.read_bytes())
        change(document)
        signed.signature.write_text(json.dumps(document))

    return edit


DAMAGE: dict[str, Callable[[dict[str, Any]], None]] = {
    "no signature": lambda document: document["dsseEnvelope"].update(signatures=[]),
    "two signatures": lambda document: document["dsseEnvelope"].update(
        signatures=document["dsseEnvelope"]["signatures"] * 2
    ),
    "other payload type": lambda document: document["dsseEnvelope"].update(payloadType="text/plain"),
    "payload is not base64": lambda document: document["dsseEnvelope"].update(payload="?"),
    "signature is a number": lambda document: document["dsseEnvelope"].update(signatures=[{"sig": 1}]),
    "no envelope": lambda document: document.pop("dsseEnvelope"),
    "envelope is a list": lambda document: document.update(dsseEnvelope=[1]),
    "other media type": lambda document: document.update(mediaType="application/json"),
}


@needs_model_signing
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_signature_is_rejected(signed: Signed, damage: str) -> None:
    _edit(DAMAGE[damage])(signed)
    with pytest.raises(SignatureError, match=r"demo\.sig: is not a signature of .*; fetch the bundle"):
        verify_signature(signed.bundle, signed.signature, signed.public_key)


@needs_model_signing
@pytest.mark.parametrize("field", ["predicateType", "_type", "algorithm", "resources"])
def test_statement_about_something_else_is_rejected(signed: Signed, field: str) -> None:
    """Signs another kind of statement with the right key."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    document = json.loads(signed.signature.read_bytes())
    envelope = document["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    if field == "algorithm":
        statement["predicate"]["resources"][0]["algorithm"] = "blake2b"
    elif field == "resources":
        statement["predicate"].pop("resources")
    else:
        statement[field] = "https://example.com/other"
    payload, kind = json.dumps(statement).encode(), envelope["payloadType"]
    key = serialization.load_pem_private_key(signed.private_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    encoded = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(key.sign(encoded, ec.ECDSA(hashes.SHA256()))).decode()
    signed.signature.write_text(json.dumps(document))
    with pytest.raises(SignatureError, match=r"its statement is damaged|it signs something other"):
        verify_signature(signed.bundle, signed.signature, signed.public_key)


def test_key_of_another_type_is_rejected(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate().public_key()
    pem, plain = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "key.pub").write_bytes(key.public_bytes(pem, plain))
    with pytest.raises(SignatureError, match=r"key\.pub: is not a usable public key: .*P-256"):
        bundle.verify_signature(write_demo_bundle(tmp_path), tmp_path / "key.pub")


def test_oversized_signature_is_rejected_unread(tmp_path: Path) -> None:
    _, public = _make_keys(tmp_path, "signer")
    found = write_demo_bundle(tmp_path)
    with (tmp_path / "demo.sig").open("wb") as stream:
        stream.truncate(2**32)
    with pytest.raises(SignatureError, match="it is larger than"):
        bundle.verify_signature(found, public)


@needs_model_signing
def test_signature_of_a_linked_bundle_lies_beside_the_directory_itself(signed: Signed, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere/current"
    link.symlink_to(signed.bundle)
    assert bundle.default_signature(link) == signed.signature.resolve()
    bundle.verify_signature(bundle.load(link), signed.public_key)


def test_missing_cryptography_reports_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, public = _make_keys(tmp_path, "signer")
    found = write_demo_bundle(tmp_path)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(SignatureError, match=r"cryptography; install it: pip install 'polyhead\[server\]'"):
        bundle.verify_signature(found, public)


@needs_model_signing
def test_damaged_bundle_is_not_signed(signed: Signed) -> None:
    signed.signature.unlink()
    _change_a_file(signed)
    with pytest.raises(SigningError, match=r"model\.onnx: was changed"):
        sign(signed.bundle, signed.signature, signed.private_key)
    assert not signed.signature.exists()


@needs_model_signing
@pytest.mark.parametrize("place", ["demo.sig", "torch/demo.sig", "../demo/demo.sig"])
def test_signature_is_never_written_into_the_bundle(signed: Signed, place: str) -> None:
    with pytest.raises(SigningError, match=r"is inside the bundle.*; write it beside the bundle, .*demo\.sig"):
        sign(signed.bundle, signed.bundle / place, signed.private_key)
    bundle.load(signed.bundle)


@needs_model_signing
def test_public_key_does_not_sign(signed: Signed) -> None:
    before = signed.signature.read_bytes()
    with pytest.raises(SigningError, match=r"signer\.pub: is not a usable private key: .*; use a PEM file"):
        sign(signed.bundle, signed.signature, signed.public_key)
    assert signed.signature.read_bytes() == before


@needs_model_signing
def test_unsupported_curve_does_not_sign(signed: Signed) -> None:
    private, _ = _make_keys(signed.bundle.parent, "bitcoin", "SECP256K1")
    with pytest.raises(SigningError, match=r"bitcoin\.pem: .*Unsupported key for curve 'secp256k1'"):
        sign(signed.bundle, signed.signature, private)


@needs_model_signing
def test_signature_in_a_missing_folder_cannot_be_written(signed: Signed) -> None:
    with pytest.raises(SigningError, match=r"nowhere/demo\.sig: cannot be written: .*; choose another file"):
        sign(signed.bundle, signed.bundle.parent / "nowhere" / "demo.sig", signed.private_key)


def test_missing_package_reports_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_demo_bundle(tmp_path).path
    for module in ("model_signing", "model_signing.hashing", "model_signing.signing"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SigningError, match=r"demo: .* model-signing.*; install it: pip install '\.\[signing\]'"):
        sign(path, tmp_path / "demo.sig", tmp_path / "key.pem")
    assert not (tmp_path / "demo.sig").exists()

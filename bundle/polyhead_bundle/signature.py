"""Verifies the signature of a bundle: OpenSSF's model-signing format with an elliptic curve key, without a network.

A signature is a file beside the bundle. It holds a DSSE envelope: a signed in-toto statement with the SHA-256 of every
file. ``polyhead-export sign`` and ``python -m model_signing`` write it::

    BUNDLE.sig --public key--> statement: SHA-256 of every file ==? those of the verified Bundle

This module is the only one of the package that requires another: cryptography, imported where it is used.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SignatureError
from .manifest import MANIFEST_NAME
from .store import Bundle

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

# A statement holds about 200 bytes per file of the bundle.
MAX_SIGNATURE_BYTES = 4 * 2**20
_ENVELOPE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_FETCH_AGAIN = "fetch the bundle and its signature again, and check that the public key is the signer's"
_VALID_KEY = "use a PEM file with a public key on the curve P-256, P-384 or P-521"


def default_signature(bundle_dir: Path) -> Path:
    """Returns the path of a bundle's signature: beside the directory, links resolved, with the suffix ``.sig``."""
    resolved = bundle_dir.resolve()
    return resolved.with_name(resolved.name + ".sig")


def verify_signature(bundle: Bundle, public_key: Path, signature: Path | None = None) -> None:
    """Rejects a bundle that differs, in any file or byte, from what the holder of a key signed.

    Args:
        bundle: The loaded bundle, whose own hashes have been verified.
        public_key: PEM file of the signer's public key, from a source that the bundle's sender cannot change.
        signature: The signature file. Default: ``default_signature``.

    Raises:
        SignatureError: The key cannot be used, or the signature is missing, damaged, made with another key, or of
            other files.
    """
    signature = signature or default_signature(bundle.path)
    key = _read_key(public_key)
    try:
        signed = _signed_files(_read(signature), key)
        _compare(signed, _files(bundle))
    except (_InvalidSignatureError, OSError, ValueError) as error:
        reason = f"is not a signature of {bundle.path} by the key {public_key}: {error}; {_FETCH_AGAIN}"
        raise SignatureError(signature, reason) from None


class _InvalidSignatureError(Exception):
    """The signature does not match; the message says why."""


def _read_key(path: Path) -> EllipticCurvePublicKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    except ImportError:
        raise SignatureError(
            path, "cannot be used without the package cryptography; install it: pip install 'polyhead[server]'"
        ) from None
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise SignatureError(path, f"is not a usable public key: {error.strerror or error}; {_VALID_KEY}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError(path, f"is not a usable public key; {_VALID_KEY}") from None
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise SignatureError(path, f"is not a usable public key: it has another type; {_VALID_KEY}")
    return key


# Hash of the signature algorithm by curve, as the format prescribes.
_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


def _read(path: Path) -> dict[str, Any]:
    """Reads the envelope."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_SIGNATURE_BYTES + 1)
    except OSError as error:
        raise _InvalidSignatureError(f"it cannot be read: {error.strerror}") from None
    if len(content) > MAX_SIGNATURE_BYTES:
        raise _InvalidSignatureError(f"it is larger than {MAX_SIGNATURE_BYTES} bytes")
    try:
        document = json.loads(content)
        if document["mediaType"] != _ENVELOPE_TYPE:
            raise _InvalidSignatureError(f"its media type is {document['mediaType']!r}, not {_ENVELOPE_TYPE}")
        return dict(document["dsseEnvelope"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _InvalidSignatureError("it is not a signature file of model-signing") from None


def _signed_files(envelope: dict[str, Any], key: EllipticCurvePublicKey) -> dict[str, str]:
    """Returns the SHA-256 of each signed file by name, after the signature over all of them was verified."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
        (entry,) = envelope["signatures"]
        signature = base64.b64decode(entry["sig"], validate=True)
        kind = str(envelope["payloadType"])
    except (ValueError, KeyError, TypeError):
        raise _InvalidSignatureError("its envelope is damaged") from None
    encoded = f"DSSEv1 {len(kind.encode())} {kind} {len(payload)} ".encode() + payload
    try:
        key.verify(signature, encoded, ec.ECDSA(getattr(hashes, _HASHES[key.curve.name])()))
    except InvalidSignature:
        raise _InvalidSignatureError("it was made with another key, or its content was changed") from None
    try:
        statement = json.loads(payload)
        types = (kind, statement["_type"], statement["predicateType"])
        files = [(one["name"], one["algorithm"], one["digest"]) for one in statement["predicate"]["resources"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _InvalidSignatureError("its statement is damaged") from None
    if types != (_PAYLOAD_TYPE, _STATEMENT_TYPE, _PREDICATE_TYPE) or any(one[1] != "sha256" for one in files):
        raise _InvalidSignatureError("it signs something other than the SHA-256 of a model's files")
    return {name: digest for name, _, digest in files}


def _files(bundle: Bundle) -> dict[str, str]:
    """Returns the SHA-256 of each file of a bundle by name, the manifest included."""
    raw = (bundle.path / MANIFEST_NAME).read_bytes()
    # The digest covers all other fields. A file that was replaced since it was loaded has another one.
    if json.loads(raw).get("digest") != bundle.digest:
        raise _InvalidSignatureError(f"{MANIFEST_NAME} was changed while it was verified")
    manifest = hashlib.sha256(raw).hexdigest()
    return {MANIFEST_NAME: manifest, **{name: entry.sha256 for name, entry in bundle.manifest.files.items()}}


def _compare(signed: dict[str, str], actual: dict[str, str]) -> None:
    for name in sorted({*signed, *actual}):
        if name not in signed:
            raise _InvalidSignatureError(f"{name} is not signed")
        if name not in actual:
            raise _InvalidSignatureError(f"the signed file {name} is missing")
        if signed[name] != actual[name]:
            raise _InvalidSignatureError(f"{name} differs from the signed file")

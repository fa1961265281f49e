"""Signatures of bundles, in OpenSSF's model-signing format, with elliptic curve keys. Nothing here needs a network.

::

    BUNDLE/ --load--> every byte is the written one --model-signing + private key--> BUNDLE.sig   (beside, never inside)
    BUNDLE/ + BUNDLE.sig + public key --> every file, and no other, is what the holder of the private key signed

The keys are PEM files on the curves P-256, P-384 or P-521, such as openssl makes::

    openssl ecparam -name prime256v1 -genkey -noout -out signing.pem
    openssl ec -in signing.pem -pubout -out signing.pub
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polyhead_bundle as bundle
from polyhead_bundle import BundleError

from .errors import ExportError

_INSTALL = "install it: pip install '.[signing]' in polyhead's sources"
_FETCH_AGAIN = "fetch the bundle and its signature again, and check that the public key is the signer's"
_NEW_KEY = "give a PEM file of a key on the curve P-256, P-384 or P-521 without a password"


class SigningError(ExportError):
    """A bundle cannot be signed, or is not what was signed.

    Attributes:
        path: The file or directory at fault.
        reason: What is wrong with it.
        mend: What to do about it.
    """

    def __init__(self, path: Path, reason: str, mend: str) -> None:
        super().__init__(f"{path}: {reason}; {mend}")
        self.path = path
        self.reason = reason
        self.mend = mend


def sign(bundle_dir: Path, signature: Path, private_key: Path) -> None:
    """Signs every file of a bundle.

    Args:
        bundle_dir: The bundle; it is verified before it is signed.
        signature: The file to write, outside of the bundle; one that stands there is replaced.
        private_key: PEM file of the key to sign with.

    Raises:
        SigningError: model-signing is not installed, the bundle is damaged, the key is none, or ``signature`` lies
            inside the bundle or cannot be written.
    """
    library = _import_model_signing(bundle_dir)
    _require_outside(signature, bundle_dir)
    _require_whole(bundle_dir)
    with _blaming(private_key, "is no private key that can sign", _NEW_KEY):
        signer = library.signing.Config().use_elliptic_key_signer(private_key=private_key)
    signer.set_hashing_config(_every_file(library.hashing))
    with (
        _blaming(signature, "cannot be written", "choose another file"),
        tempfile.TemporaryDirectory(prefix=f".{signature.name}.tmp-", dir=signature.parent) as staging,
    ):
        signer.sign(bundle_dir.resolve(), Path(staging) / signature.name)
        (Path(staging) / signature.name).replace(signature)


def verify_signature(bundle_dir: Path, signature: Path, public_key: Path) -> None:
    """Refuses a bundle that is not, byte for byte and file for file, what the holder of a key signed.

    Args:
        bundle_dir: The bundle; its own hashes are verified first.
        signature: What ``sign`` wrote.
        public_key: PEM file of the signer's public key, from a source that the bundle's sender cannot change.

    Raises:
        SigningError: model-signing is not installed, the bundle is damaged or is not what was signed, the signature is
            none or was made with another key, or a file is missing.
    """
    library = _import_model_signing(bundle_dir)
    _require_whole(bundle_dir)
    with _blaming(public_key, "is no public key that can verify", _NEW_KEY):
        verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    verifier.set_hashing_config(_every_file(library.hashing))
    with _blaming(signature, f"is not a signature of {bundle_dir} by the key {public_key}", _FETCH_AGAIN):
        verifier.verify(bundle_dir.resolve(), signature)


def _import_model_signing(bundle_dir: Path) -> Any:
    """The package, with the modules that are used here."""
    try:
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        reason = f"signatures need the package model-signing, which cannot be imported: {error}"
        raise SigningError(bundle_dir, reason, _INSTALL) from error
    return model_signing


def _every_file(hashing: Any) -> Any:
    """Hashes each file of a bundle, those too that model-signing, or a careless signer, would leave out."""

    class EveryFile(hashing.Config):  # type: ignore[misc]  # model-signing may not be there
        def add_ignored_paths(self, **_: Any) -> None:
            """Keeps a signature from naming files that it does not cover."""

    return EveryFile().set_ignored_paths(paths=(), ignore_git_paths=False)


def _require_outside(signature: Path, bundle_dir: Path) -> None:
    if signature.resolve().is_relative_to(bundle_dir.resolve()):
        reason = "lies inside the bundle, which holds its own files and nothing else"
        raise SigningError(signature, reason, f"write it beside, as {bundle_dir}.sig")


def _require_whole(bundle_dir: Path) -> None:
    try:
        bundle.load(bundle_dir)
    except BundleError as error:
        raise SigningError(error.path, error.reason, "fetch the bundle again, or export the model again") from error


@contextmanager
def _blaming(path: Path, what: str, mend: str) -> Iterator[None]:
    """Turns whatever goes wrong inside into a ``SigningError`` about one file."""
    try:
        yield
    except Exception as error:  # model-signing, cryptography, pydantic and json raise what they like
        raise SigningError(path, f"{what}: {_in_short(error)}", mend) from error


def _in_short(error: Exception) -> str:
    """What an error says, without the digests as raw bytes that model-signing adds to a list of its differences."""
    text = re.sub(r"\[[\"']|[\"']\]", "", str(error)).partition(": Expected ")[0]
    return " ".join(text.split()) or type(error).__name__

"""Signs bundles in OpenSSF's model-signing format, with elliptic curve keys and without a network.

::

    BUNDLE/ --load--> every byte is verified --model-signing + private key--> BUNDLE.sig   (beside, never inside)

``polyhead_bundle.verify_signature`` verifies them, wherever the bundle is served.

Keys are PEM files on the curves P-256, P-384 or P-521; openssl creates them with::

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
_NEW_KEY = "use a PEM file of a key on the curve P-256, P-384 or P-521 without a password"


class SigningError(ExportError):
    """A bundle cannot be signed.

    Attributes:
        path: The file or directory at fault.
        reason: What is wrong with it.
        hint: How to fix it.
    """

    exit_code = 2

    def __init__(self, path: Path, reason: str, hint: str) -> None:
        super().__init__(f"{path}: {reason}; {hint}")
        self.path = path
        self.reason = reason
        self.hint = hint


def sign(bundle_dir: Path, signature: Path, private_key: Path) -> None:
    """Signs every file of a bundle.

    Args:
        bundle_dir: The bundle; it is verified before it is signed.
        signature: The file to write, outside the bundle; an existing file is replaced.
        private_key: PEM file of the key to sign with.

    Raises:
        SigningError: model-signing is not installed, the bundle is damaged, the key is invalid, or ``signature`` is
            inside the bundle or cannot be written.
    """
    library = _import_model_signing(bundle_dir)
    _require_outside(signature, bundle_dir)
    _require_intact(bundle_dir)
    with _errors_about(private_key, "is not a usable private key", _NEW_KEY):
        signer = library.signing.Config().use_elliptic_key_signer(private_key=private_key)
    signer.set_hashing_config(_every_file(library.hashing))
    with (
        _errors_about(signature, "cannot be written", "choose another file"),
        tempfile.TemporaryDirectory(prefix=f".{signature.name}.tmp-", dir=signature.parent) as staging,
    ):
        signer.sign(bundle_dir.resolve(), Path(staging) / signature.name)
        (Path(staging) / signature.name).replace(signature)


def _import_model_signing(bundle_dir: Path) -> Any:
    """Imports model-signing with the modules used here."""
    try:
        import model_signing.hashing
        import model_signing.signing
    except ImportError as error:
        reason = f"signatures require the package model-signing, which cannot be imported: {error}"
        raise SigningError(bundle_dir, reason, _INSTALL) from error
    return model_signing


def _every_file(hashing: Any) -> Any:
    """Hashes every file of a bundle, including those that model-signing or the signer would exclude."""

    class EveryFile(hashing.Config):  # type: ignore[misc]  # model-signing is optional
        def add_ignored_paths(self, **_: Any) -> None:
            """Ignores paths that a signature asks to exclude."""

    return EveryFile().set_ignored_paths(paths=(), ignore_git_paths=False)


def _require_outside(signature: Path, bundle_dir: Path) -> None:
    if signature.resolve().is_relative_to(bundle_dir.resolve()):
        reason = "is inside the bundle, which holds no other files"
        raise SigningError(signature, reason, f"write it beside the bundle, for example to {bundle_dir}.sig")


def _require_intact(bundle_dir: Path) -> None:
    try:
        bundle.load(bundle_dir)
    except BundleError as error:
        raise SigningError(error.path, error.reason, "fetch the bundle again, or export the model again") from error


@contextmanager
def _errors_about(path: Path, problem: str, hint: str) -> Iterator[None]:
    """Converts every error inside the block into a ``SigningError`` about one file."""
    try:
        yield
    except Exception as error:  # model-signing, cryptography, pydantic and json raise errors of many types
        raise SigningError(path, f"{problem}: {_shorten(error)}", hint) from error


def _shorten(error: Exception) -> str:
    """Message of an error, without the raw digests that model-signing appends to its list of differences."""
    text = re.sub(r"\[[\"']|[\"']\]", "", str(error)).partition(": Expected ")[0]
    return " ".join(text.split()) or type(error).__name__

"""Errors raised for an invalid bundle.

::

    BundleError
    +-- FormatError      bundle.json is not a valid manifest of a supported format version
    +-- IntegrityError   a file is missing, unexpected, changed, or not a regular file of its own
    +-- SignatureError   the bundle does not match its signature, or the public key cannot be used
"""

from __future__ import annotations

from pathlib import Path


class BundleError(Exception):
    """A directory cannot be used as a bundle.

    Attributes:
        path: The file or directory at fault.
        reason: What is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class FormatError(BundleError):
    """``bundle.json`` is not a valid manifest of a supported format version."""


class IntegrityError(BundleError):
    """A file of the bundle is missing, unexpected, changed, or not a regular file of its own."""


class SignatureError(BundleError):
    """The bundle does not match its signature, or the public key cannot be used."""

"""Where the workers of a cluster get the model from: a folder on each node, or a tar file that is sent to them."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polyhead_bundle

from .annotator import Annotator
from .errors import EngineError


@dataclass(frozen=True)
class ModelSource:
    """A model for workers.

    Attributes:
        bundle: The bundle's folder.
        archive: Reference to the content of ``archive_of``; None to read ``bundle`` on each node.
        digest: Digest that the bundle must have; empty for any.
        public_key: Content of the PEM file of the bundle's signer; empty accepts unsigned bundles.
        arguments: Further arguments of ``Annotator``.
    """

    bundle: str
    archive: Any
    digest: str
    public_key: bytes
    arguments: Mapping[str, Any]

    def load(self, archive: bytes | None) -> Annotator:
        """Loads and verifies the model.

        Args:
            archive: What ``archive`` refers to.

        Raises:
            EngineError: The bundle is damaged or another one, or no engine passes its self-test.
            UsageError: The model does not fit the options.
        """
        with tempfile.TemporaryDirectory(prefix="polyhead-") as folder:
            bundle = Path(self.bundle) if archive is None else _unpack(archive, Path(folder))
            key = Path(folder, "public_key.pem")
            key.write_bytes(self.public_key)
            public_key = str(key) if self.public_key else ""
            return Annotator(bundle, public_key=public_key, expected_digest=self.digest, **self.arguments)


def digest_of(bundle: Path) -> str:
    """Returns the digest of a bundle, after it was verified.

    Raises:
        EngineError: It is damaged.
    """
    try:
        return polyhead_bundle.load(bundle).digest
    except polyhead_bundle.BundleError as error:
        raise EngineError(str(error)) from error


def archive_of(bundle: Path) -> bytes:
    """Returns a tar file with the bundle, and its signature if there is one."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        # The bundle may be a link, which would be archived as one.
        archive.add(bundle.resolve(), "bundle")
        signature = polyhead_bundle.default_signature(bundle)
        if signature.exists():
            archive.add(signature, "bundle.sig")
    return content.getvalue()


def _unpack(content: bytes, folder: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "bundle"

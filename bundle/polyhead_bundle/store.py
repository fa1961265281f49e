"""Bundles on disk: written atomically, and loaded only after every byte is verified."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import codec
from .atomic_directory import replace_directory, staging_folder
from .errors import BundleError, FormatError, IntegrityError
from .manifest import FORMAT_VERSION, MANIFEST_NAME, FileEntry, Manifest, check_file_name, check_manifest

# A manifest holds a dozen golden outputs and names. A larger file is not a manifest, and is rejected before it is read.
MAX_MANIFEST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose every byte was verified when it was loaded.

    ``format_version`` is that of its ``bundle.json``; ``manifest`` has the form of this release.
    """

    path: Path
    manifest: Manifest
    digest: str
    format_version: int = FORMAT_VERSION

    @property
    def model_id(self) -> str:
        """Name of the model and the first 12 digits of its digest."""
        return f"{self.manifest.name}-{self.digest[:12]}"

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists.

        Raises:
            IntegrityError: The manifest does not list it.
        """
        if name not in self.manifest.files:
            raise IntegrityError(self.path / name, "is not a file of this bundle")
        return self.path / name


def load(path: Path) -> Bundle:
    """Reads a bundle and verifies all of it before any other code parses its files.

    Args:
        path: The bundle's directory.

    Returns:
        The bundle.

    Raises:
        FormatError: ``bundle.json`` is missing, damaged, or of an unsupported format version.
        IntegrityError: Another file is missing, unexpected, changed, unreadable, or a link.
    """
    try:
        return _load(path)
    except OSError as error:
        raise IntegrityError(Path(error.filename or path), f"cannot be read: {error.strerror}") from None


def _load(path: Path) -> Bundle:
    manifest_path = path / MANIFEST_NAME
    if not path.is_dir():
        raise FormatError(path, "is not a bundle: no such directory")
    _require_regular_file(manifest_path, FormatError, "is missing: this directory is not a bundle")
    if manifest_path.stat().st_size > MAX_MANIFEST_BYTES:
        raise FormatError(manifest_path, f"is larger than {MAX_MANIFEST_BYTES} bytes")
    manifest, digest, version = codec.parse(manifest_path)
    _verify_files(path, manifest.files)
    return Bundle(path=path, manifest=manifest, digest=digest, format_version=version)


def write(destination: Path, manifest: Manifest, sources: Mapping[str, Path]) -> Bundle:
    """Writes a bundle atomically: into a temporary folder beside ``destination``, synced, then renamed.

    Args:
        destination: The directory to create. An existing bundle is replaced, even a damaged one as long as its
            ``bundle.json`` is intact and it holds no unexpected files; any other directory is an error.
        manifest: The manifest; ``write`` fills in ``manifest.files``.
        sources: The file to copy for each name in the bundle.

    Returns:
        The bundle, loaded and verified from the written files.

    Raises:
        BundleError: ``destination`` exists and is not a bundle, or the written files do not verify.
        FormatError: The manifest contradicts itself, or holds a number that is not finite.
        OSError: The files cannot be written.
    """
    # Resolved, so that a link stays and its target is replaced, and so that "." has a name for the staging folder.
    target = destination.resolve()
    require_replaceable(target)
    with staging_folder(target) as staging:
        try:
            _fill(staging, manifest, sources)
        except ValueError as error:
            raise FormatError(target / MANIFEST_NAME, str(error)) from None
        bundle = load(staging)
        replace_directory(staging, target)
    return dataclasses.replace(bundle, path=destination)


def require_replaceable(destination: Path) -> None:
    """Rejects a destination that must not be overwritten.

    Replacing a directory deletes it, so an existing one must be a bundle that holds only the files its manifest lists.

    Raises:
        BundleError: ``destination`` exists and is not a bundle.
    """
    if not destination.exists():
        return
    try:
        manifest, _, _ = codec.parse(destination / MANIFEST_NAME)
        _verify_names(destination, manifest.files)
    except (BundleError, OSError):
        reason = "already exists, is not a bundle of this release, and was left unchanged; remove it or choose another"
        raise BundleError(destination, reason) from None


def _fill(staging: Path, manifest: Manifest, sources: Mapping[str, Path]) -> None:
    for name, source in sources.items():
        check_file_name(name)
        target = staging / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    filled = dataclasses.replace(manifest, files={name: _describe(staging / name) for name in sorted(sources)})
    check_manifest(filled)
    (staging / MANIFEST_NAME).write_bytes(codec.render(filled))


def fingerprint(*parts: str | bytes) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over the parts, each preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _describe(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256_of(path), size=path.stat().st_size)


def _verify_files(root: Path, expected: Mapping[str, FileEntry]) -> None:
    _verify_names(root, expected)
    for name, entry in sorted(expected.items()):
        path = root / name
        _require_regular_file(path, IntegrityError, "is missing")
        if path.stat().st_size != entry.size:
            raise IntegrityError(path, f"has {path.stat().st_size} bytes; bundle.json lists {entry.size}")
        if sha256_of(path) != entry.sha256:
            raise IntegrityError(path, "was changed: its SHA-256 is not the one in bundle.json")


def _verify_names(root: Path, expected: Mapping[str, FileEntry]) -> None:
    folders = {name.rpartition("/")[0] for name in expected}
    for name in sorted(set(_walk(root)) - set(expected) - folders - {MANIFEST_NAME}):
        raise IntegrityError(root / name, "is not listed in bundle.json; a bundle holds no other files")


def _walk(root: Path) -> Iterator[str]:
    """Yields the names of all files and folders under ``root``.

    Raises:
        IntegrityError: A folder is a link.
        OSError: A folder cannot be read.
    """
    for directory, folders, files in os.walk(root, onerror=_raise):
        current = Path(directory)
        for name in folders:
            if (current / name).is_symlink():
                raise IntegrityError(current / name, "is a link; links are not allowed in a bundle")
        for name in [*files, *folders]:
            yield (current / name).relative_to(root).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _require_regular_file(path: Path, error: type[BundleError], if_missing: str) -> None:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise error(path, if_missing) from None
    if not stat.S_ISREG(status.st_mode):
        raise error(path, "is not a regular file; links and devices are not allowed in a bundle")
    # Another process could change the bytes through a second hard link after they are verified.
    if status.st_nlink != 1:
        raise error(path, "has a second hard link; copy the bundle instead of linking its files")

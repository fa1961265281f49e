"""Bundles on disk: written whole or not at all, read only after every byte was verified."""

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
from .atomic_directory import replace_directory, staging_folder, sync_tree
from .errors import BundleError, FormatError, IntegrityError
from .manifest import MANIFEST_NAME, FileEntry, Manifest, check_file_name, check_manifest

# A manifest is some golden vectors and names; a larger one is not ours, and is refused before it is read.
_MAX_MANIFEST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk of which every byte was verified when it was loaded."""

    path: Path
    manifest: Manifest
    digest: str

    @property
    def model_id(self) -> str:
        """Name of the model and the first 12 digits of its digest."""
        return f"{self.manifest.name}-{self.digest[:12]}"

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise IntegrityError(self.path / name, "is not a file of this bundle")
        return self.path / name


def load(path: Path) -> Bundle:
    """Reads a bundle and verifies all of it before anything else may parse its files.

    Args:
        path: The bundle's directory.

    Returns:
        The bundle.

    Raises:
        FormatError: ``bundle.json`` is missing, damaged, or of an unknown format version.
        IntegrityError: Another file is missing, extra, changed, unreadable, or a link.
    """
    try:
        return _load(path)
    except OSError as error:
        raise IntegrityError(Path(error.filename or path), f"cannot be read: {error.strerror}") from None


def _load(path: Path) -> Bundle:
    manifest_path = path / MANIFEST_NAME
    if not path.is_dir():
        raise FormatError(path, "is not a bundle: no such directory")
    _require_plain_file(manifest_path, FormatError, "is missing: this directory is not a bundle")
    if manifest_path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise FormatError(manifest_path, f"is larger than {_MAX_MANIFEST_BYTES} bytes")
    manifest, digest = codec.parse(manifest_path)
    _verify_files(path, manifest.files)
    return Bundle(path=path, manifest=manifest, digest=digest)


def write(destination: Path, manifest: Manifest, sources: Mapping[str, Path]) -> Bundle:
    """Writes a bundle whole or not at all: under a temporary name beside ``destination``, synced, then renamed.

    Args:
        destination: The directory to create. A bundle that stands there already is replaced, even a damaged one as
            long as its ``bundle.json`` is whole and it holds no other files; anything else is not.
        manifest: What to say about the files; ``manifest.files`` is filled in here.
        sources: The file to copy for each name in the bundle.

    Returns:
        The bundle, verified again from the written files.

    Raises:
        BundleError: ``destination`` exists and is not a bundle, or the written files do not verify.
        FormatError: The manifest contradicts itself, or holds a number that is not finite.
        OSError: The disk did not take the files.
    """
    # A link's target is what gets replaced, and "." has no name to put a temporary one beside.
    target = destination.resolve()
    require_replaceable(target)
    with staging_folder(target) as staging:
        try:
            _fill(staging, manifest, sources)
        except ValueError as error:
            raise FormatError(target / MANIFEST_NAME, str(error)) from None
        staging.chmod(0o755)
        sync_tree(staging)
        bundle = load(staging)
        replace_directory(staging, target)
    return dataclasses.replace(bundle, path=destination)


def require_replaceable(destination: Path) -> None:
    """Refuses to write over anything but a bundle. Replacing deletes: so every file there must be one that it names.

    Raises:
        BundleError: ``destination`` exists and is not a bundle.
    """
    if not destination.exists():
        return
    try:
        manifest, _ = codec.parse(destination / MANIFEST_NAME)
        _verify_names(destination, manifest.files)
    except (BundleError, OSError):
        reason = "exists, is not a bundle of this release, and was left alone. Remove it, or choose another directory"
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
        _require_plain_file(path, IntegrityError, "is missing")
        if path.stat().st_size != entry.size:
            raise IntegrityError(path, f"has {path.stat().st_size} bytes; bundle.json says {entry.size}")
        if sha256_of(path) != entry.sha256:
            raise IntegrityError(path, "was changed: its SHA-256 is not the one in bundle.json")


def _verify_names(root: Path, expected: Mapping[str, FileEntry]) -> None:
    folders = {name.rpartition("/")[0] for name in expected}
    for name in sorted(set(_walk(root)) - set(expected) - folders - {MANIFEST_NAME}):
        raise IntegrityError(root / name, "is not listed in bundle.json; a bundle holds its own files and nothing else")


def _walk(root: Path) -> Iterator[str]:
    """Names of all files and folders under ``root``; a linked folder is refused, an unreadable one is an OSError."""
    for directory, folders, files in os.walk(root, onerror=_raise):
        here = Path(directory)
        for name in folders:
            if (here / name).is_symlink():
                raise IntegrityError(here / name, "is a link; links are refused")
        for name in [*files, *folders]:
            yield (here / name).relative_to(root).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _require_plain_file(path: Path, error: type[BundleError], if_missing: str) -> None:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise error(path, if_missing) from None
    if not stat.S_ISREG(status.st_mode):
        raise error(path, "is not a plain file; links and devices are refused")
    # A second name elsewhere could change the bytes after they were verified.
    if status.st_nlink != 1:
        raise error(path, "has a second hard link; copy the bundle instead of linking its files")

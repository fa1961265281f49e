"""Input files by the arguments that name them: files, globs, folders with Hive partitions, URLs, standard input."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from polyhead_bundle import sha256_of

from .errors import InputError, UsageError

# Format by file extension.
_EXTENSIONS = {
    "parquet": "parquet",
    "pq": "parquet",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "csv": "csv",
    "arrow": "arrow",
    "feather": "arrow",
    "ipc": "arrow",
    "arrows": "arrow-stream",
}
_COMPRESSIONS = {"gz": "gzip", "zst": "zstd"}
_COMPRESSIBLE = ("jsonl", "csv")
STDIN_FORMATS = ("jsonl", "csv", "arrow-stream")
_SUPPORTED = "use .parquet, .jsonl or .csv (either also with .gz or .zst), .arrow or .arrows"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PARTITION = re.compile(r"([^=/]+)=([^/]*)")
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Source:
    """One input.

    Attributes:
        name: The path or URL in messages.
        path: Path within ``filesystem``; empty for standard input.
        format: ``parquet``, ``jsonl``, ``csv``, ``arrow`` or ``arrow-stream``.
        compression: ``gzip``, ``zstd`` or None.
        filesystem: The file system of pyarrow; None for standard input.
        is_local: Whether ``path`` is a path of this machine.
        size: Bytes; 0 for standard input.
        modified_ns: Time of the last change; 0 where it is unknown.
        partitions: Columns that the names of folders state, such as ``year=2026``.
    """

    name: str
    path: str
    format: str
    compression: str | None = None
    filesystem: Any = field(default=None, repr=False, compare=False)
    is_local: bool = False
    size: int = 0
    modified_ns: int = 0
    partitions: tuple[tuple[str, str | None], ...] = ()

    @property
    def is_stdin(self) -> bool:
        """Whether this is standard input."""
        return self.filesystem is None

    def sha256(self) -> str:
        """Returns the digest of the content of a local file, and of size and time of a file elsewhere."""
        if not self.is_local:
            return hashlib.sha256(f"{self.size} {self.modified_ns}".encode()).hexdigest()
        try:
            return sha256_of(Path(self.path))
        except OSError as error:
            raise InputError(self.name, f"cannot be read: {error.strerror}") from error


def find_sources(arguments: Sequence[str], output: Path, input_format: str | None = None) -> list[Source]:
    """Returns the inputs in the order of the arguments, those of a folder or glob sorted by path.

    Args:
        arguments: Files, globs, folders, URLs, or ``-`` for standard input.
        output: The output folder, which must not contain an input or lie in a folder of inputs.
        input_format: Format of files whose extension does not tell; of standard input ``jsonl`` by default.

    Raises:
        UsageError: Nothing matches, a folder cannot be read, a file is named twice or has an unknown format, or inputs
            and output overlap.
    """
    try:
        sources = [source for argument in arguments for source in _expand(argument, output, input_format)]
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
    seen: dict[str, str] = {}
    for source in sources:
        key = str(Path(source.path).resolve()) if source.is_local else source.name
        if key in seen:
            raise UsageError(f"{source.name}: is named twice, also as {seen[key]}")
        seen[key] = source.name
        if source.is_local and Path(key).is_relative_to(output.resolve()):
            raise UsageError(f"{source.name}: is in the output folder {output}; use another output folder")
    return sources


def _expand(argument: str, output: Path, input_format: str | None) -> Iterator[Source]:
    if argument == "-":
        kind = input_format or "jsonl"
        if kind not in STDIN_FORMATS:
            raise UsageError(f"standard input cannot be {kind}: {', '.join(STDIN_FORMATS)}")
        yield Source("standard input", "", kind)
    elif _URL.match(argument):
        yield from _from_url(argument, input_format)
    elif Path(argument).is_dir():
        folder = Path(argument)
        if output.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"the output folder {output} is in the input folder {folder}; use a folder outside of it")
        yield from _from_folder(folder, input_format)
    elif Path(argument).exists():
        yield _local(Path(argument), input_format)
    elif glob.has_magic(argument):
        matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207  absolute patterns, which Path.glob refuses
        files = [Path(match) for match in matches if not Path(match).is_dir()]
        if not files:
            raise UsageError(f"{argument}: matches no file")
        yield from (_local(path, input_format) for path in files)
    else:
        raise UsageError(f"{argument}: no such file or folder")


def _local(path: Path, input_format: str | None, root: Path | None = None) -> Source:
    from pyarrow import fs

    if path.is_symlink() and not path.exists():
        raise UsageError(f"{path}: leads to a file or folder that does not exist: restore it, or remove the link")
    state = path.stat()
    if not path.is_file():
        raise UsageError(f"{path}: is not a regular file; read a pipe as -")
    kind, compression = _format(path.name, str(path), input_format)
    folders = path.relative_to(root).parent.parts if root else ()
    return Source(
        name=str(path),
        path=str(path.resolve()),
        format=kind,
        compression=compression,
        filesystem=fs.LocalFileSystem(),
        is_local=True,
        size=state.st_size,
        modified_ns=state.st_mtime_ns,
        partitions=_partitions(folders),
    )


def _from_folder(folder: Path, input_format: str | None) -> Iterator[Source]:
    found = False
    for path in _files(folder, (folder.resolve(),), set()):
        if input_format or _is_known(path.name) or _is_lost_folder(path):
            found = True
            yield _local(path, input_format, folder)
    if not found:
        raise UsageError(f"{folder}: contains no input file; {_SUPPORTED}")


def _is_lost_folder(path: Path) -> bool:
    """Returns whether a path is a link to nothing that may have been a folder by its name."""
    return (not path.suffix or _PARTITION.fullmatch(path.name) is not None) and not path.exists()


def _files(folder: Path, roots: tuple[Path, ...], taken: set[Path]) -> Iterator[Path]:
    """Yields the data files of a folder, then those of the folders in it, each sorted by name.

    Args:
        folder: The folder.
        roots: The resolved first folder, and those of the links that lead from it to ``folder``. A link into one of
            them is not followed, as its files are found by their own paths; nor is a link to a folder around one.
        taken: Resolved folders whose files were yielded; they are not yielded again by another link.

    Raises:
        OSError: A folder cannot be read.
    """
    folders = []
    for path in sorted(folder.iterdir()):
        if not _is_data(path.name):
            continue
        if not path.is_dir():
            yield path
        elif not path.is_symlink():
            folders.append((path, roots))
        elif not any((real := path.resolve()).is_relative_to(one) or one.is_relative_to(real) for one in roots):
            folders.append((path, (*roots, real)))
    for inner, inner_roots in folders:
        if (real := inner.resolve()) not in taken:
            taken.add(real)
            yield from _files(inner, inner_roots, taken)


def _is_data(name: str) -> bool:
    """Returns whether a file or folder is data by the convention of Hive and Spark: not _SUCCESS, .crc, _temporary."""
    return not name.startswith((".", "_"))


def _from_url(url: str, input_format: str | None) -> Iterator[Source]:
    import pyarrow as pa
    from pyarrow import fs

    filesystem, path = _filesystem(url)
    try:
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.Directory:
            selector = fs.FileSelector(path, recursive=True)
            infos = [one for one in filesystem.get_file_info(selector) if one.type == fs.FileType.File]
        else:
            infos = [info]
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{url}: cannot be read: {error}") from error
    is_folder = info.type == fs.FileType.Directory
    depth = len(PurePosixPath(path).parts)
    if is_folder:
        infos = [
            one
            for one in infos
            if all(map(_is_data, PurePosixPath(one.path).parts[depth:])) and (input_format or _is_known(one.base_name))
        ]
    if not infos or info.type == fs.FileType.NotFound:
        raise UsageError(f"{url}: no such file, or a folder without input files; globs work for local files alone")
    for one in sorted(infos, key=lambda one: str(one.path)):
        name = f"{url.rstrip('/')}{one.path.removeprefix(path.rstrip('/'))}" if is_folder else url
        kind, compression = _format(one.base_name, name, input_format)
        inner = PurePosixPath(one.path).parent.parts[depth:] if is_folder else ()
        yield Source(
            name=name,
            path=one.path,
            format=kind,
            compression=compression,
            filesystem=filesystem,
            size=one.size or 0,
            modified_ns=one.mtime_ns or 0,
            partitions=_partitions(inner),
        )


def _filesystem(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path in it: one of pyarrow's own, otherwise one of fsspec."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(url)  # type: ignore[no-any-return]
    except pa.ArrowInvalid as error:
        scheme = url.partition("://")[0]
        try:
            import fsspec

            found, path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as missing:
            raise UsageError(f"{url}: {scheme}:// requires pip install 'fsspec[{scheme}]' ({missing})") from error
        return fs.PyFileSystem(fs.FSSpecHandler(found)), path


def _is_known(name: str) -> bool:
    parts = name.lower().split(".")
    extension = parts[-2] if len(parts) > 2 and parts[-1] in _COMPRESSIONS else parts[-1]
    return len(parts) > 1 and extension in _EXTENSIONS


def _format(base_name: str, name: str, input_format: str | None) -> tuple[str, str | None]:
    extensions = base_name.lower().split(".")[1:]
    compression = _COMPRESSIONS.get(extensions[-1]) if extensions else None
    if compression:
        extensions = extensions[:-1]
    kind = _EXTENSIONS.get(extensions[-1]) if extensions else None
    kind = kind or input_format
    if kind is None:
        raise UsageError(f"{name}: has an unknown file extension; {_SUPPORTED}, or --input-format")
    if compression and kind not in _COMPRESSIBLE:
        raise UsageError(f"{name}: {kind} files contain their own compression: decompress the file")
    return kind, compression


def _partitions(folders: Sequence[str]) -> tuple[tuple[str, str | None], ...]:
    found = [match for folder in folders if (match := _PARTITION.fullmatch(folder))]
    return tuple((unquote(one[1]), None if one[2] == _NULL_PARTITION else unquote(one[2])) for one in found)

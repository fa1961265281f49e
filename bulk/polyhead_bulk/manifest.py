"""``_manifest.json``: what a job computes from which inputs, and the parts that are complete.

Its name begins with an underscore, so that readers of data sets skip it and read the folder as one table. Processes
that share a job (``--shard``) write the same description of it; the list of parts is compiled from their records.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import InputError, OutputError, ResumeError
from .files import locked, write_file
from .parts import RECORDS, PartRecord
from .sources import Source

NAME = "_manifest.json"
_FORMAT_VERSION = 1
_LOCK = ".lock"
# Parts of the description that the output depends on, with their names in messages.
_COMPARED = {"model": "model", "options": "option", "output": "output"}


def claim(output: Path, description: Mapping[str, Any]) -> None:
    """Starts a job in a folder, or continues the same job there; adds digests of inputs that were not readable before.

    Args:
        output: The folder; created if there is none.
        description: The job: ``model``, ``options`` and ``output`` as flat mappings, and ``inputs`` in order.

    Raises:
        ResumeError: The folder holds another job, or files that belong to none.
        OutputError: The folder cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / RECORDS).mkdir(exist_ok=True)
        with lock(output):
            previous = _read(output)
            if previous is None:
                _require_empty(output)
                _write(output, {**description, "complete": False, "parts": []})
                return
            differences = list(_differences(previous, description))
            if not differences:
                inputs = _with_digests(previous["inputs"], description["inputs"])
                if inputs != previous["inputs"]:
                    _write(output, {**previous, "inputs": inputs})
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error
    if differences:
        raise ResumeError(
            f"{output} holds the parts of another job: {'; '.join(differences)}. Use another output folder, or delete "
            "this one"
        )


def update(
    output: Path, description: Mapping[str, Any], records: Iterable[PartRecord], failures: Sequence[str], *, done: bool
) -> None:
    """Writes the list of parts.

    Args:
        output: The folder.
        description: As for ``claim``.
        records: Records of all complete parts in the folder.
        failures: Fragments without a part, and why.
        done: Whether no fragment is missing.

    Raises:
        OutputError: The file cannot be written.
    """
    parts = [
        {name: value for name, value in vars(record).items() if name != "is_last"}
        for record in sorted(records, key=lambda record: record.key)
    ]
    totals = {"rows": sum(part["rows"] for part in parts), "errors": sum(part["errors"] for part in parts)}
    try:
        # Another process may have read an input that this one could not.
        inputs = _with_digests(description["inputs"], _previous_inputs(output) or description["inputs"])
        content = {**description, "inputs": inputs, "complete": done, **totals}
        _write(output, {**content, "failures": list(failures), "parts": parts})
    except OSError as error:
        raise OutputError(f"{output / NAME}: cannot be written: {error.strerror or error}") from error


def lock(output: Path) -> Any:
    """Returns a context in which no other process of the job updates the manifest."""
    return locked(output / RECORDS / _LOCK)


def describe_inputs(output: Path, sources: Iterable[Source]) -> Iterator[Mapping[str, Any]]:
    """Describes inputs; the digest of a file that has not changed since the last run is not computed again.

    An input that cannot be read has the digest of the last run, or None; its reader reports it.

    Args:
        output: The output folder, which may have a manifest.
        sources: The inputs.
    """
    known = {one["name"]: one for one in _previous_inputs(output)}
    for source in sources:
        previous = known.get(source.name, {})
        digest = previous.get("sha256")
        # That of the file when it had the digest.
        modified_ns = previous["modified_ns"] if digest else source.modified_ns
        if not digest or (previous["size"], modified_ns) != (source.size, source.modified_ns):
            with suppress(InputError):
                digest, modified_ns = source.sha256(), source.modified_ns
        yield {
            "name": source.name,
            "format": source.format,
            "size": source.size,
            "modified_ns": modified_ns,
            "partitions": dict(source.partitions),
            "sha256": digest,
        }


def _with_digests(inputs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns descriptions of inputs; one without a digest gets that of its other description, with size and time."""
    return [
        {**one, **{key: other[key] for key in ("size", "modified_ns", "sha256")}}
        if other.get("sha256") and not one.get("sha256")
        else one
        for one, other in zip(inputs, others, strict=True)
    ]


def _previous_inputs(output: Path) -> list[Mapping[str, Any]]:
    """Returns the inputs that the manifest in a folder describes; none without a manifest."""
    try:
        previous = _read(output)
    except OSError:
        return []
    return list(previous["inputs"]) if previous else []


def _read(output: Path) -> dict[str, Any] | None:
    path = output / NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        if content["format_version"] != _FORMAT_VERSION:
            raise ResumeError(f"{path}: is of another version of polyhead; use another output folder")
        return dict(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ResumeError(f"{path}: is not a manifest of polyhead bulk: {error}; use another output folder") from error


def _write(output: Path, content: Mapping[str, Any]) -> None:
    document = {"format_version": _FORMAT_VERSION, **content}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    # Bytes of file names that are not UTF-8 are lone surrogates, which JSON can only escape.
    write_file(output / NAME, text.encode(errors="backslashreplace") + b"\n")


def _require_empty(output: Path) -> None:
    names = (path.name for path in output.iterdir())
    others = sorted(name for name in names if name not in (RECORDS, "lost+found") and not name.startswith("."))
    if others:
        raise ResumeError(f"{output} is not empty and has no {NAME}: it contains {others[0]}; use another folder")


def _differences(previous: Mapping[str, Any], current: Mapping[str, Any]) -> Iterable[str]:
    for section, name in _COMPARED.items():
        before, after = previous.get(section, {}), current[section]
        for key in dict.fromkeys([*before, *after]):
            # An option that the release which began the job did not know had no effect then.
            if (before.get(key) or None) != (after.get(key) or None):
                yield f"{name} {key}: {_short(before.get(key))} there, {_short(after.get(key))} now"
    before, after = previous.get("inputs", []), current["inputs"]
    if len(before) != len(after):
        yield f"inputs: {len(before)} there, {len(after)} now"
    for old, new in zip(before, after, strict=False):
        # Of a file that could not be read, nothing was answered.
        compared = ("sha256", "size") if old.get("sha256") and new.get("sha256") else ()
        if any(old.get(key) != new.get(key) for key in (*compared, "format", "partitions")):
            changed = "has changed since" if old["name"] == new["name"] else f"is now in place of {old['name']}"
            yield f"input {new['name']}: {changed}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

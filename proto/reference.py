"""Writes the protocol reference, a Markdown page, from the comments in ``proto/polyhead/v1``.

python -m proto.reference docs/reference/protocol.md
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from .generate import protoc

PACKAGE = "polyhead.v1"
INTRODUCTION = """# Protocol

The gRPC services and messages of package `polyhead.v1`. The files in `proto/polyhead/v1` work with the protoc plug-in
of any language. [Errors](errors.md) lists the errors of items and calls.
"""
# Paths of elements in SourceCodeInfo.Location: field numbers of FileDescriptorProto and of its nested messages.
MESSAGES, ENUMS, SERVICES = (4,), (5,), (6,)
NESTED_MESSAGES, NESTED_ENUMS = 3, 4
ElementPath = tuple[int, ...]


def main() -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="output file")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(page(), encoding="utf-8")
    return 0


def page() -> str:
    """Returns the reference of all files of the protocol."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        protoc("--include_source_info", f"--descriptor_set_out={image}")
        files = FileDescriptorSet.FromString(image.read_bytes()).file
    # Services first: readers look for an RPC.
    return "\n".join(
        [INTRODUCTION, *(line for file in sorted(files, key=lambda file: not file.service) for line in File(file))]
    )


class File:
    """Iterates over the lines of one file's section: its services, messages and enums with their comments."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(location.path): " ".join(location.leading_comments.split("\n ")).strip()
            for location in file.source_code_info.location
            if location.leading_comments
        }

    def __iter__(self) -> Iterator[str]:
        yield f"## {Path(self._file.name).name}\n"
        for number, service in enumerate(self._file.service):
            yield from self._service(service, (*SERVICES, number))
        for number, message in enumerate(self._file.message_type):
            yield from self._message(message, message.name, (*MESSAGES, number))
        for number, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, enum.name, (*ENUMS, number))

    def _service(self, service: ServiceDescriptorProto, path: ElementPath) -> Iterator[str]:
        yield from self._heading(service.name, path)
        rows = []
        for number, method in enumerate(service.method):
            shapes = [
                "stream " * streams + _link(name)
                for streams, name in (
                    (method.client_streaming, method.input_type),
                    (method.server_streaming, method.output_type),
                )
            ]
            rows.append((f"`{method.name}`", *shapes, self._comment((*path, 2, number))))
        yield _table(("RPC", "request", "response", "description"), rows)

    def _message(self, message: DescriptorProto, name: str, path: ElementPath) -> Iterator[str]:
        yield from self._heading(name, path)
        rows = [
            (f"`{field.name}`", str(field.number), _type(field, message), self._comment((*path, 2, number)))
            for number, field in enumerate(message.field)
        ]
        yield _table(("field", "number", "type", "description"), rows)
        for number, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from self._message(nested, f"{name}.{nested.name}", (*path, NESTED_MESSAGES, number))
        for number, enum in enumerate(message.enum_type):
            yield from self._enum(enum, f"{name}.{enum.name}", (*path, NESTED_ENUMS, number))

    def _enum(self, enum: EnumDescriptorProto, name: str, path: ElementPath) -> Iterator[str]:
        yield from self._heading(name, path)
        rows = [
            (f"`{value.name}`", str(value.number), self._comment((*path, 2, number)))
            for number, value in enumerate(enum.value)
        ]
        yield _table(("value", "number", "description"), rows)

    def _heading(self, name: str, path: ElementPath) -> Iterator[str]:
        yield f"### {name}\n"
        yield self._comments.get(path, "") + "\n"

    def _comment(self, path: ElementPath) -> str:
        return " ".join(self._comments.get(path, "").split()).replace("|", "\\|")


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    if field.type_name:
        entry = next(
            (one for one in message.nested_type if field.type_name.endswith(f".{message.name}.{one.name}")), None
        )
        if entry is not None and entry.options.map_entry:
            return f"map of {_type(entry.field[0], entry)} to {_type(entry.field[1], entry)}"
    name = _link(field.type_name) if field.type_name else FieldDescriptorProto.Type.Name(field.type)[5:].lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _link(name: str) -> str:
    """Returns a type's name, as a link to its heading if it is part of the protocol."""
    full = name.removeprefix(".")
    short = full.removeprefix(f"{PACKAGE}.")
    return f"[{short}](#{short.replace('.', '').lower()})" if short != full else f"`{full}`"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return (
        "\n".join([f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|", *lines, ""]) if lines else "No fields.\n"
    )


if __name__ == "__main__":
    sys.exit(main())

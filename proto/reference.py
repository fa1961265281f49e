"""Writes the reference of the contract, a page in Markdown, from the comments in ``proto/polyhead/v1``.

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

Everything that goes over the wire, package `polyhead.v1`. The files stand in `proto/polyhead/v1`; give them to any
language's protoc plug-ins. What an error of an item or of a call means: [errors.md](../errors.md).
"""
# Where a comment belongs, as numbers of the fields of FileDescriptorProto and those below it.
MESSAGES, ENUMS, SERVICES = (4,), (5,), (6,)
NESTED_MESSAGES, NESTED_ENUMS = 3, 4
Place = tuple[int, ...]


def main() -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the page to write")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(page(), encoding="utf-8")
    return 0


def page() -> str:
    """The reference of all files of the contract."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        protoc("--include_source_info", f"--descriptor_set_out={image}")
        files = FileDescriptorSet.FromString(image.read_bytes()).file
    # Services first: a reader comes for a call.
    return "\n".join(
        [INTRODUCTION, *(line for file in sorted(files, key=lambda file: not file.service) for line in File(file))]
    )


class File:
    """The lines of one file's section: its services, messages and enums, each with its comment."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(place.path): " ".join(place.leading_comments.split("\n ")).strip()
            for place in file.source_code_info.location
            if place.leading_comments
        }

    def __iter__(self) -> Iterator[str]:
        yield f"## {Path(self._file.name).name}\n"
        for number, service in enumerate(self._file.service):
            yield from self._service(service, (*SERVICES, number))
        for number, message in enumerate(self._file.message_type):
            yield from self._message(message, message.name, (*MESSAGES, number))
        for number, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, enum.name, (*ENUMS, number))

    def _service(self, service: ServiceDescriptorProto, place: Place) -> Iterator[str]:
        yield from self._heading(service.name, place)
        rows = []
        for number, method in enumerate(service.method):
            shapes = [
                "stream " * streams + _link(name)
                for streams, name in (
                    (method.client_streaming, method.input_type),
                    (method.server_streaming, method.output_type),
                )
            ]
            rows.append((f"`{method.name}`", *shapes, self._comment((*place, 2, number))))
        yield _table(("call", "request", "response", ""), rows)

    def _message(self, message: DescriptorProto, name: str, place: Place) -> Iterator[str]:
        yield from self._heading(name, place)
        rows = [
            (f"`{field.name}`", str(field.number), _type(field, message), self._comment((*place, 2, number)))
            for number, field in enumerate(message.field)
        ]
        yield _table(("field", "number", "type", ""), rows)
        for number, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from self._message(nested, f"{name}.{nested.name}", (*place, NESTED_MESSAGES, number))
        for number, enum in enumerate(message.enum_type):
            yield from self._enum(enum, f"{name}.{enum.name}", (*place, NESTED_ENUMS, number))

    def _enum(self, enum: EnumDescriptorProto, name: str, place: Place) -> Iterator[str]:
        yield from self._heading(name, place)
        rows = [
            (f"`{value.name}`", str(value.number), self._comment((*place, 2, number)))
            for number, value in enumerate(enum.value)
        ]
        yield _table(("value", "number", ""), rows)

    def _heading(self, name: str, place: Place) -> Iterator[str]:
        yield f"### {name}\n"
        yield self._comments.get(place, "") + "\n"

    def _comment(self, place: Place) -> str:
        return " ".join(self._comments.get(place, "").split()).replace("|", "\\|")


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
    """A type's name as a link to its heading, where it is ours."""
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

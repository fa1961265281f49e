"""What docs/reference/stability.md promises by name, as lines of text: one file of ``golden/promises`` for each kind.

A line states one thing that users rely on. An element that may gain optional parts has a line for itself, which names
its required parts, and one for each of the others: a new optional flag adds a line, a new required one changes a line.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from importlib import resources
from typing import Any

import click
from polyhead_client.cli.main import main as client
from polyhead_export.cli import main as export
from polyhead_export.settings import Settings as ExportSettings
from polyhead_server.cli import main as serve
from polyhead_server.security.api_keys import main as api_keys
from polyhead_training.cli import main as train
from polyhead_training.config import Config

from docs.reference_pages import commands
from tests.support import sources

PROGRAMS = {
    "polyhead": client,
    "polyhead-train": train,
    "polyhead-export": export,
    "polyhead-serve": serve,
    "python -m polyhead_server.security.api_keys": api_keys,
}
# Packages whose `__all__` is promised. polyhead_adapters requires the frameworks, whose own tests hold it.
PACKAGES = ("polyhead_bulk", "polyhead_bundle", "polyhead_client")
_HTTP_METHODS = {"get", "post", "put", "delete", "patch", "head"}


def promises() -> dict[str, set[str]]:
    """Returns the lines of each kind, as they are now."""
    return {
        "command_line": set(command_line()),
        "configuration": {*configuration("train", Config), *configuration("export", ExportSettings)},
        "errors": set(errors()),
        "http": set(http()),
        "metrics": set(metrics()),
        "python": {line for name in PACKAGES for line in package(name)},
    }


def command_line() -> Iterator[str]:
    """Yields the commands with their arguments and required options, and their other options."""
    for program, command in PROGRAMS.items():
        for context in commands(command, program):
            parameters = context.command.get_params(context)
            required = [_parameter(one) for one in parameters if isinstance(one, click.Argument) or one.required]
            yield " ".join((context.command_path, *required))
            for option in parameters:
                if isinstance(option, click.Option) and not option.required and not option.hidden:
                    for line in _option(option):
                        yield f"{context.command_path} {line}"


def _parameter(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        return parameter.opts[0]
    name = str(parameter.name).upper() + ("..." if parameter.nargs != 1 else "")
    return name if parameter.required else f"[{name}]"


def _option(option: click.Option) -> Iterator[str]:
    """Yields each spelling of an option, its environment variables and its choices."""
    kind = "flag" if option.is_flag or option.count else "values" if option.multiple else "value"
    for name in (*option.opts, *option.secondary_opts):
        yield f"{name} ({kind})"
    variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
    yield from (f"{option.opts[0]} = ${variable}" for variable in variables)
    if isinstance(option.type, click.Choice):
        yield from (f"{option.opts[0]} {choice}" for choice in option.type.choices)


def configuration(name: str, model: type[Any]) -> Iterator[str]:
    """Yields the keys of a configuration file, their types, and the values that a key may have."""
    schema = model.model_json_schema()
    for section, fields in {name: schema, **schema.get("$defs", {})}.items():
        for key, entry in fields.get("properties", {}).items():
            required = " (required)" if key in fields.get("required", ()) else ""
            for kind in _json_types(entry):
                yield f"{section}.{key}{required}: {kind}"


def _json_types(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yields each type or value of a JSON Schema."""
    if "$ref" in entry:
        yield entry["$ref"].rpartition("/")[2]
    elif "enum" in entry or "const" in entry:
        yield from map(json.dumps, entry.get("enum", [entry.get("const")]))
    elif "anyOf" in entry:
        for one in entry["anyOf"]:
            yield from _json_types(one)
    elif isinstance(entry.get("items"), Mapping):
        yield from (f"list of {kind}" for kind in _json_types(entry["items"]))
    elif isinstance(entry.get("additionalProperties"), Mapping):
        yield from (f"table of {kind}" for kind in _json_types(entry["additionalProperties"]))
    else:
        yield str(entry.get("type", "anything"))


def errors() -> Iterator[str]:
    """Yields the code and the reason of each error; a contract test compares this page with the code."""
    page = sources.documentation_page("| `INVALID_ARGUMENT` | `TEXT_NOT_UTF8` |").read_text()
    for code, reason in re.findall(r"^\| `([A-Z_]+)` \| `([A-Z0-9_]+)` \|", page, re.MULTILINE):
        yield f"{code} {reason}"


def http() -> Iterator[str]:
    """Yields the paths and methods of the HTTP API, and the fields of each schema."""
    document = json.loads(resources.files("polyhead_server.http").joinpath("openapi.json").read_bytes())
    for path, operations in document["paths"].items():
        for method in operations.keys() & _HTTP_METHODS:
            yield f"{method.upper()} {path}"
    for name, schema in document["components"]["schemas"].items():
        yield " ".join((name, "requires", *sorted(schema.get("required", ()))))
        yield from (f"{name}.{field}" for field in schema.get("properties", ()))


def metrics() -> Iterator[str]:
    """Yields the metrics with their labels; a contract test compares this page with the code."""
    page = sources.documentation_page("| name | unit, kind | labels |").read_text()
    for name, cell in re.findall(r"^\| `(polyhead_\w+)` \|[^|]*\|([^|]*)\|", page, re.MULTILINE):
        labels = sorted(re.findall(r"`(\w+)`", cell))
        yield f"{name}{{{','.join(labels)}}}"


def package(name: str) -> Iterator[str]:
    """Yields the public names of a package, with the parameters of functions and the fields of classes."""
    module = importlib.import_module(name)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value):
            yield from _class(f"{name}.{public}", value)
        elif callable(value) and not typing.get_origin(value):
            yield from signature(f"{name}.{public}", value)
        else:
            yield f"{name}.{public}"


def _class(name: str, kind: type[Any]) -> Iterator[str]:
    if typing.is_typeddict(kind):
        yield " ".join((name, "requires", *sorted(kind.__required_keys__)))
        yield from (f"{name}[{key!r}]" for key in kind.__optional_keys__)
        return
    bases = [base.__name__ for base in kind.__mro__[1:] if base.__module__.partition(".")[0] != "builtins"]
    if issubclass(kind, Exception):
        # Users catch them and read their attributes; only the packages themselves create them.
        yield f"{name} is an exception ({', '.join(base for base in bases if not base.startswith('_'))})"
        yield from (f"{name}.{field}" for field in inspect.get_annotations(kind) if not field.startswith("_"))
        return
    if issubclass(kind, Enum):
        yield from (f"{name}.{member.name} = {member.value!r}" for member in kind)
        return
    if not hasattr(kind, "to_dict"):  # answers, which only the client creates
        yield from signature(name, kind)
    if dataclasses.is_dataclass(kind):
        yield from (f"{name}.{field.name}" for field in dataclasses.fields(kind) if not field.name.startswith("_"))
    for member, value in inspect.getmembers(kind):
        if member.startswith("_") or not _is_ours(kind, member):
            continue
        if inspect.isfunction(value) or inspect.ismethod(value):
            yield from signature(f"{name}.{member}", value)
        elif isinstance(value, property):
            yield f"{name}.{member}"


def _is_ours(kind: type[Any], member: str) -> bool:
    return any(member in vars(base) and base.__module__.startswith("polyhead") for base in kind.__mro__)


def signature(name: str, value: Any) -> Iterator[str]:
    """Yields the required parameters of a callable in one line, and each of the others in its own."""
    parameters = [one for one in inspect.signature(value).parameters.values() if one.name not in ("self", "cls")]
    required = []
    for parameter in parameters:
        keyword = "=" if parameter.kind is parameter.KEYWORD_ONLY else ""
        if parameter.kind is parameter.VAR_KEYWORD:
            yield f"{name}(**{_options_of(parameter)})"
        elif parameter.kind is parameter.VAR_POSITIONAL:
            yield f"{name}(*{parameter.name})"
        elif parameter.default is parameter.empty:
            required.append(parameter.name + keyword)
        else:
            place = "" if keyword else f"{parameters.index(parameter)}: "
            yield f"{name}({place}{parameter.name}{keyword or '='})"
    yield f"{name}({', '.join(required)})"


def _options_of(parameter: inspect.Parameter) -> str:
    """Returns the TypedDict of keyword arguments, such as ``EmbedOptions``, or the name of the parameter."""
    found = re.search(r"Unpack\[(?:[\w.]*\.)?(\w+)\]", str(parameter.annotation))
    return found[1] if found else parameter.name

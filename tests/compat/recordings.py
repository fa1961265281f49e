"""Recorded calls: the bytes that clients sent, and those that the server answered with, on golden bundles.

::

    golden/calls.json, requests --> today's server --> today's answers, read with golden/stubs.binpb == recorded answers
    golden/calls.json, answers  --> today's client --> values == golden/calls.json, values
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

GOLDEN = Path(__file__).parent / "golden"
_MANIFEST = "bundle.json"
CALLS, STUBS, BUNDLES = GOLDEN / "calls.json", GOLDEN / "stubs.binpb", GOLDEN / "bundles"
SERVICE = "polyhead.v1.InferenceService"
# Versions of which a bundle is recorded, oldest first.
VERSIONS = sorted(int(path.name) for path in BUNDLES.iterdir())
# Whose files bundles of older versions share, so that the repository holds them once.
_SHARED = "4"
# Values that are not promised: texts for people, settings of the server, the machine.
_UNPROMISED = {"limits", "message", "runtime", "server_version"}
_ENCODINGS = {
    "EMBEDDING_ENCODING_FLOAT32_LE": "<f4",
    "EMBEDDING_ENCODING_FLOAT16_LE": "<f2",
    "EMBEDDING_ENCODING_INT8": "i1",
    "EMBEDDING_ENCODING_BINARY": "u1",
}
TIMEOUT_S = 60


@dataclass(frozen=True)
class Recording:
    """A call of one method.

    Attributes:
        name: Says what it shows.
        version: Format version of the golden bundle that answered.
        method: Name of the RPC.
        requests: Request messages; one if the RPC is unary.
        responses: Response messages.
        values: What the client of that time made of the responses, as ``to_dict()``; None if it was not asked.
    """

    name: str
    version: int
    method: str
    requests: tuple[bytes, ...]
    responses: tuple[bytes, ...]
    values: Any = None


def load() -> list[Recording]:
    """Returns the recorded calls."""
    return [
        Recording(
            name=name,
            version=call["version"],
            method=call["method"],
            requests=tuple(map(base64.b64decode, call["requests"])),
            responses=tuple(map(base64.b64decode, call["responses"])),
            values=call["values"],
        )
        for name, call in json.loads(CALLS.read_bytes()).items()
    ]


def save(recordings: Sequence[Recording]) -> None:
    """Writes the recorded calls."""
    document = {
        one.name: {
            "version": one.version,
            "method": one.method,
            "requests": [base64.b64encode(data).decode() for data in one.requests],
            "responses": [base64.b64encode(data).decode() for data in one.responses],
            "values": one.values,
        }
        for one in recordings
    }
    CALLS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def write_bundle(version: int, folder: Path) -> Path:
    """Writes the golden bundle of a format version to ``folder/golden``; returns its path."""
    source, bundle = BUNDLES / str(version), folder / "golden"
    bundle.mkdir(parents=True)
    shutil.copy(source / _MANIFEST, bundle)
    for name in json.loads((source / _MANIFEST).read_bytes())["files"]:
        (bundle / name).parent.mkdir(exist_ok=True)
        file = source / name
        shutil.copy(file if file.exists() else BUNDLES / _SHARED / name, bundle / name)
    return bundle


class Stubs:
    """The messages of a protocol from its descriptors, apart from those that this process has loaded."""

    def __init__(self, image: bytes) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(image).file:
            self._pool.Add(file)  # type: ignore[no-untyped-call,unused-ignore]

    def call(self, channel: grpc.Channel, method: str, requests: Sequence[bytes]) -> list[bytes]:
        """Sends request messages to the InferenceService; returns the response messages."""
        found = self._method(method)
        path = f"/{SERVICE}/{method}"
        if found.client_streaming:
            streams: Any = channel.stream_stream(path)
            return list(streams(iter(requests), timeout=TIMEOUT_S))
        (request,) = requests
        unary: Any = channel.unary_unary(path)
        return [unary(request, timeout=TIMEOUT_S)]

    def read(self, method: str, responses: Sequence[bytes]) -> list[Any]:
        """Returns the answers in response messages, or the messages of a method without answers, as plain values."""
        response = message_factory.GetMessageClass(self._method(method).output_type)
        parsed = [
            json_format.MessageToDict(
                response.FromString(data), preserving_proto_field_name=True, descriptor_pool=self._pool
            )
            for data in responses
        ]
        return [_comparable(one) for document in parsed for one in document.get("answers", [document])]

    def _method(self, name: str) -> Any:
        return self._pool.FindServiceByName(SERVICE).methods_by_name[name]


def _comparable(value: Any) -> Any:
    """Returns a value with embeddings as numbers."""
    if isinstance(value, dict):
        found = {key: _comparable(one) for key, one in value.items()}
        if value.get("encoding") in _ENCODINGS:
            data = base64.b64decode(value["values"])
            found["values"] = np.frombuffer(data, _ENCODINGS[value["encoding"]]).astype(float).tolist()
        return found
    return [_comparable(one) for one in value] if isinstance(value, list) else value


def losses(then: Any, now: Any, where: str = "$") -> Iterator[str]:
    """Yields what an answer of today lacks of a recorded one; fields that it has in addition are allowed."""
    if isinstance(then, Mapping):
        for key, value in then.items():
            if not isinstance(now, Mapping) or key not in now:
                yield f"{where}.{key} is missing"
            elif key not in _UNPROMISED:
                yield from losses(value, now[key], f"{where}.{key}")
    elif isinstance(then, list):
        if not isinstance(now, list) or len(now) != len(then):
            yield f"{where} has other elements: {now}, not {then}"
            return
        for index, value in enumerate(then):
            yield from losses(value, now[index], f"{where}[{index}]")
    elif not _equal(then, now, where):
        yield f"{where} is {now!r}, not {then!r}"


def _equal(then: Any, now: Any, where: str) -> bool:
    """Whether two values agree; other processors compute slightly different numbers, and int8 values one apart."""
    if not isinstance(then, float) or not isinstance(now, int | float):
        return bool(then == now)
    return abs(now - then) <= (1 if ".values[" in where and then.is_integer() else 1e-3)

"""Adds to the golden files what this release promises in addition; run it when a version is released.

    python -m tests.compat.renew                           # new names, calls and stubs, and a bundle of a new format
    python -m tests.compat.renew --breaking "REASON"       # also removes promises that no longer hold

A removed promise is a breaking change: docs/reference/stability.md says in which versions it is allowed. The reason
goes into ``golden/removed.txt`` with the version and the promise. Recorded calls and bundles never change; those that
may no longer work are deleted by hand, with a line in the same file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2, duration_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2
from polyhead.v1 import inference_service_pb2
from polyhead_bundle import FORMAT_VERSION
from polyhead_client import Client

from bench.harness.servers import serving

from . import recordings
from .calls import CALLS, Call
from .promises import promises
from .recordings import BUNDLES, GOLDEN, STUBS, Recording, Stubs
from .small_run import write_golden_bundle

PROMISES, REMOVED = GOLDEN / "promises", GOLDEN / "removed.txt"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--breaking", metavar="REASON", help="remove promises that no longer hold, for this reason")
    reason: str | None = parser.parse_args(arguments).breaking
    removed = [
        line for kind in promises() for line in renew_promises(PROMISES / f"{kind}.txt", promises()[kind], reason)
    ]
    if removed and reason is None:
        sys.stderr.write("".join(f"no longer holds: {line}\n" for line in removed))
        return 1
    STUBS.write_bytes(image())
    with tempfile.TemporaryDirectory() as work:
        if not (BUNDLES / str(FORMAT_VERSION)).exists():
            write_golden_bundle(BUNDLES / str(FORMAT_VERSION), Path(work, "run"))
        record(Path(work, "bundles"))
    return 0


def renew_promises(path: Path, now: set[str], reason: str | None) -> list[str]:
    """Adds new promises to a file.

    Args:
        path: The file; it need not exist.
        now: The promises that hold today.
        reason: Why others are removed. None removes and writes nothing if there are any.

    Returns:
        The promises that no longer hold.
    """
    removed = sorted(read(path) - now)
    if removed and reason is None:
        return removed
    path.write_text("".join(f"{line}\n" for line in sorted(now)), encoding="utf-8")
    version = metadata.version("polyhead")
    with (path.parent.parent / REMOVED.name).open("a", encoding="utf-8") as file:
        file.writelines(f"{version}: {line}: {reason}\n" for line in removed)
    return removed


def read(path: Path) -> set[str]:
    """Returns the promises in a file; none if it does not exist."""
    return set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()


def image() -> bytes:
    """Returns the descriptors of the protocol and of the messages in its statuses."""
    files: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        for dependency in file.dependencies:
            add(dependency)
        files.setdefault(file.name, file)

    for module in (inference_service_pb2, error_details_pb2, duration_pb2):
        add(module.DESCRIPTOR)
    found = descriptor_pb2.FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(found.file.add())  # type: ignore[no-untyped-call,unused-ignore]
    return found.SerializeToString(deterministic=True)


def record(work: Path) -> None:
    """Records the calls that are not yet recorded, each on its golden bundle.

    Args:
        work: Folder for the bundles.
    """
    known = recordings.load() if recordings.CALLS.exists() else []
    missing = {name: call for name, call in CALLS.items() if name not in {one.name for one in known}}
    for version in sorted({call.version for call in missing.values()}):
        bundle = recordings.write_bundle(version, work / str(version))
        with serving(bundle, "--device", "cpu") as target:
            known += [_recorded(name, call, target) for name, call in missing.items() if call.version == version]
    recordings.save(known)


def _recorded(name: str, call: Call, target: str) -> Recording:
    stubs = Stubs(STUBS.read_bytes())
    requests = tuple(request.SerializeToString(deterministic=True) for request in call.requests)
    with grpc.insecure_channel(target) as channel:
        responses = tuple(stubs.call(channel, call.method, requests))
    values = None
    if call.client is not None:
        with Client(target) as client:
            values = call.client(client)
    return Recording(name, call.version, call.method, requests, responses, values)


if __name__ == "__main__":
    sys.exit(main())

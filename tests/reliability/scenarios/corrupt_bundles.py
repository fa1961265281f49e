"""Corrupt and incompatible bundles, which must not replace the bundle that is served."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc.aio
import polyhead_bundle as bundle
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import admin_service_pb2_grpc
from polyhead_client import AsyncClient

from bench.harness.servers import free_port
from bench.harness.texts import ROOT
from tests.reliability.processes import run_server
from tests.reliability.reference_answers import version
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import Traffic

from .restarts_and_reloads import replace_link

_RELOAD_TIMEOUT_S = 60.0
_FUZZING_TIMEOUT_S = 600.0
# Maximum time to load or refuse one bundle.
_MAX_LOAD_S = 10.0
_GRAPH = "model.int8.onnx"


@scenario(
    "corrupt bundles",
    fault="The symbolic link to the bundle is replaced by links to 12 kinds of corrupt and incompatible bundles, each "
    "followed by a reload, under load",
    expected="Each bundle is refused with its specific reason, no item fails and the old model keeps answering; a "
    "valid bundle is accepted afterwards",
)
async def corrupt_bundles(context: Context) -> Verdict:
    """Reloads through the admin service, which returns the reason of a refusal. The control reloads a valid bundle."""
    kinds = dict(list(KINDS.items())[:: context.scaled(1, 6)])
    link = context.work_dir / "served"
    replace_link(link, context.bundle)
    admin = f"127.0.0.1:{free_port()}"
    old, new = context.reference_answers.versions
    traffic = Traffic(context.reference_answers, context.texts)
    not_refused: list[str] = []
    moments: list[float] = []
    async with (
        run_server(link, context.work_dir, "--admin-listen", admin) as server,
        AsyncClient(server.target) as client,
        grpc.aio.insecure_channel(admin) as channel,
        traffic.flowing([client]),
    ):
        stub: Any = admin_service_pb2_grpc.AdminServiceStub(channel)
        for kind, (corrupt, reason) in kinds.items():
            await traffic.flow_until(100)
            with tempfile.TemporaryDirectory(dir=context.work_dir) as directory:
                replace_link(link, corrupt(Path(shutil.copytree(context.bundle, Path(directory) / "corrupt"))))
                moments.append(time.monotonic())
                if reason not in await _refusal(stub) or await _served_version(client) != old:
                    not_refused.append(kind)
        await traffic.flow_until(100)
        other_model = sum(one.version != old for one in traffic.requests if one.outcome == "correct")
        replace_link(link, context.other_bundle)
        valid_refused = await _refusal(stub)
        replaced = await _served_version(client) == new
        await traffic.flow_until(100)
    items, failures = len(traffic.requests), traffic.failures()
    return Verdict(
        observed=f"{len(kinds) - len(not_refused)} of {len(kinds)} kinds were refused, each for its specific reason"
        f"{'; not refused: ' if not_refused else ''}{', '.join(not_refused)}; {failures} of {items:,} items without a "
        f"correct answer, {other_model} answered by another model",
        passed=not not_refused and not failures and not other_model and traffic.covers(*moments),
        control="a valid bundle with another head is accepted" if replaced else "a valid bundle is refused as well",
        control_failed=replaced and not valid_refused,
        figures={"kinds": len(kinds), "not_refused": len(not_refused), "items": items, "failed_items": failures},
    )


@scenario(
    "fuzzed bundles",
    fault="Hypothesis changes any part of the manifest or the tokenizer file and corrects every hash",
    expected="The server refuses each bundle with one line, or its model passes the self-test; loading neither "
    "crashes nor hangs",
)
async def fuzzed_bundles(context: Context) -> Verdict:
    """A separate process loads the bundles as the server does. The control loads the unchanged bundle."""
    command = ["-m", "tests.reliability.bundle_fuzz", str(context.bundle), str(context.work_dir / "fuzzed")]
    examples = context.scaled(300, 15)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, "--examples", str(examples), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _FUZZING_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        raise SystemExit("loading a bundle does not end") from None
    report = json.loads(output)
    outcomes = {name: report[name]["outcomes"] for name in ("manifest", "tokenizer")}
    loads = sum(sum(one.values()) for one in outcomes.values())
    faults = sum(n for one in outcomes.values() for outcome, n in one.items() if outcome not in {"refused", "loaded"})
    slowest_s = max(report[name]["slowest_s"] for name in outcomes)
    summary = "; ".join(f"{name}: {', '.join(f'{k} {n}' for k, n in one.items())}" for name, one in outcomes.items())
    return Verdict(
        observed=f"{loads} bundles, {summary}; {faults} ended in any other way; the slowest took {slowest_s:.1f} s; "
        f"memory {report['growth_mb']:+.0f} MB",
        passed=not faults and slowest_s < _MAX_LOAD_S and all(one.get("refused") for one in outcomes.values()),
        control=f"the unchanged bundle: {report['unchanged']}",
        control_failed=report["unchanged"] == "loaded",
        figures={"bundles": loads, "faults": faults, "slowest_s": slowest_s, "growth_mb": report["growth_mb"]},
    )


async def _refusal(stub: Any) -> str:
    """Reason why a reload is refused; empty if it is not refused, or not because of the bundle."""
    try:
        await stub.Reload(pb2.ReloadRequest(), timeout=_RELOAD_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        return str(error.details()) if error.code() is grpc.StatusCode.FAILED_PRECONDITION else ""
    return ""


async def _served_version(client: AsyncClient) -> str:
    return version((await client.info()).fingerprints)


def _rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def corrupt(root: Path) -> Path:
        path = root / name
        path.write_bytes(change(path.read_bytes()))
        return root

    return corrupt


def _flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Path]:
    """Changes the manifest; the files that it lists stay unchanged, so every hash of a file is correct."""

    def changed(content: bytes) -> bytes:
        values = json.loads(content)
        change(values)
        return json.dumps(values).encode()

    return _rewritten(bundle.MANIFEST_NAME, changed)


def _missing(name: str) -> Callable[[Path], Path]:
    def corrupt(root: Path) -> Path:
        (root / name).unlink()
        return root

    return corrupt


def _written(change: Callable[[bundle.Manifest], bundle.Manifest]) -> Callable[[Path], Path]:
    """Writes a bundle as an export does: intact, but incompatible or with incorrect golden answers."""

    def corrupt(root: Path) -> Path:
        original = bundle.load(root)
        destination = root.with_name(f"{root.name}-written")
        bundle.write(
            destination,
            change(original.manifest),
            {name: original.file(name) for name in original.manifest.files},
        )
        return destination

    return corrupt


def _reverse_labels(manifest: bundle.Manifest) -> bundle.Manifest:
    first, *others = manifest.heads
    return dataclasses.replace(manifest, heads=(dataclasses.replace(first, labels=first.labels[::-1]), *others))


def _change_embedding_space(manifest: bundle.Manifest) -> bundle.Manifest:
    def change(variant: bundle.Variant) -> bundle.Variant:
        fingerprints = dataclasses.replace(variant.fingerprints, embedding_space="0" * 16)
        return dataclasses.replace(variant, fingerprints=fingerprints)

    return dataclasses.replace(manifest, variants={name: change(one) for name, one in manifest.variants.items()})


def _negate_golden_answers(manifest: bundle.Manifest) -> bundle.Manifest:
    def negate(variant: bundle.Variant) -> bundle.Variant:
        golden = tuple(
            dataclasses.replace(one, embedding=tuple(-value for value in one.embedding)) for one in variant.golden
        )
        return dataclasses.replace(variant, golden=golden)

    return dataclasses.replace(manifest, variants={name: negate(one) for name, one in manifest.variants.items()})


# By kind: a function that corrupts a copy of the bundle and returns its path, and a part of the expected reason.
KINDS: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    "manifest missing": (_missing(bundle.MANIFEST_NAME), "bundle.json: is missing"),
    "manifest truncated": (
        _rewritten(bundle.MANIFEST_NAME, lambda content: content[: len(content) // 2]),
        "not valid JSON",
    ),
    "newer format": (_manifest(lambda values: values.update(format_version=999)), "format_version 999"),
    "manifest changed": (_manifest(lambda values: values.update(unexpected=1)), "was changed: its digest"),
    "graph missing": (_missing(_GRAPH), f"{_GRAPH}: is missing"),
    "graph truncated": (_rewritten(_GRAPH, lambda content: content[:-1000]), "bytes; bundle.json"),
    "bit of the graph flipped": (_rewritten(_GRAPH, _flip_bit), f"{_GRAPH}: was changed"),
    "bit of the tokenizer flipped": (_rewritten(bundle.TOKENIZER, _flip_bit), f"{bundle.TOKENIZER}: was changed"),
    "golden answers of another model": (_written(_negate_golden_answers), "answers golden texts wrongly"),
    "labels reordered": (_written(_reverse_labels), " where the "),
    "embedding space changed": (_written(_change_embedding_space), "cannot be compared"),
    "bundle missing": (lambda root: root / "nowhere", "no such directory"),
}

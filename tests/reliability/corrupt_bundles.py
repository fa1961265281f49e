"""Bundles that must not take over from the one that is served."""

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

from .processes import running
from .reference_answers import version
from .restarts_and_reloads import point
from .scenario import Context, Verdict, scenario
from .traffic import Traffic

_RELOAD_S = 60.0
_FUZZING_S = 600.0
_SLOW_S = 10.0
_GRAPH = "model.int8.onnx"


@scenario(
    "damaged bundles",
    fault="the bundle behind a link replaced by damaged and by foreign ones of 12 kinds, then a reload, under load",
    expected="each is refused with its reason, no item fails, the old model answers on; a good one is taken after them",
)
async def damaged_bundles(context: Context) -> Verdict:
    """Reloads by the admin service, which says why not. The control: a good bundle does take over."""
    kinds = dict(list(KINDS.items())[:: context.scaled(1, 6)])
    link = context.folder / "served"
    point(link, context.bundle)
    admin = f"127.0.0.1:{free_port()}"
    old, new = context.reference_answers.versions
    traffic = Traffic(context.reference_answers, context.texts)
    taken: list[str] = []
    moments: list[float] = []
    async with (
        running(link, context.folder, "--admin-listen", admin) as server,
        AsyncClient(server.target) as client,
        grpc.aio.insecure_channel(admin) as channel,
        traffic.flowing([client]),
    ):
        stub: Any = admin_service_pb2_grpc.AdminServiceStub(channel)
        for kind, (damage, reason) in kinds.items():
            await traffic.flow_until(100)
            with tempfile.TemporaryDirectory(dir=context.folder) as folder:
                point(link, damage(Path(shutil.copytree(context.bundle, Path(folder) / "damaged"))))
                moments.append(time.monotonic())
                if reason not in await _refusal(stub) or await _serving(client) != old:
                    taken.append(kind)
        await traffic.flow_until(100)
        by_others = sum(one.version != old for one in traffic.requests if one.outcome == "right")
        point(link, context.other)
        good_refused = await _refusal(stub)
        replaced = await _serving(client) == new
        await traffic.flow_until(100)
    items, bad = len(traffic.requests), traffic.bad()
    return Verdict(
        seen=f"of {len(kinds)} kinds {len(kinds) - len(taken)} were refused, each for its own reason"
        f"{'; not: ' if taken else ''}{', '.join(taken)}; of {items:,} items {bad} were not answered rightly, "
        f"{by_others} by another model",
        passed=not taken and not bad and not by_others and traffic.enough(*moments),
        control="a good bundle with another head is taken" if replaced else "a good bundle was refused as well",
        control_failed=replaced and not good_refused,
        figures={"kinds": len(kinds), "taken": len(taken), "items": items, "bad_items": bad},
    )


@scenario(
    "fuzzed bundles",
    fault="manifests and tokenizer files that Hypothesis changed anywhere, with every hash made right again",
    expected="the server refuses each with a line, or its model answers the golden texts; nothing else, and no waiting",
)
async def fuzzed_bundles(context: Context) -> Verdict:
    """A process of its own loads them, as the server does. The control: the bundle as it was is not refused."""
    command = ["-m", "faults.bundle_fuzz", str(context.bundle), str(context.folder / "fuzzed")]
    examples = context.scaled(300, 15)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, "--examples", str(examples), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _FUZZING_S)
    except TimeoutError:
        process.kill()
        raise SystemExit("a bundle is being loaded for ever") from None
    found = json.loads(output)
    endings = {name: found[name]["endings"] for name in ("manifest", "tokenizer")}
    tried = sum(sum(one.values()) for one in endings.values())
    faults = sum(n for one in endings.values() for ending, n in one.items() if ending not in {"refused", "loaded"})
    slowest_s = max(found[name]["slowest_s"] for name in endings)
    told = "; ".join(f"{name}: {', '.join(f'{k} {n}' for k, n in one.items())}" for name, one in endings.items())
    return Verdict(
        seen=f"{tried} bundles, {told}; {faults} ended otherwise; the slowest took {slowest_s:.1f} s; "
        f"{found['grown_mb']:+.0f} MB",
        passed=not faults and slowest_s < _SLOW_S and all(one.get("refused") for one in endings.values()),
        control=f"the bundle as it was: {found['unchanged']}",
        control_failed=found["unchanged"] == "loaded",
        figures={"bundles": tried, "faults": faults, "slowest_s": slowest_s, "grown_mb": found["grown_mb"]},
    )


async def _refusal(stub: Any) -> str:
    """Why a reload is refused; empty where it is not, or not for the bundle."""
    try:
        await stub.Reload(pb2.ReloadRequest(), timeout=_RELOAD_S)
    except grpc.aio.AioRpcError as error:
        return str(error.details()) if error.code() is grpc.StatusCode.FAILED_PRECONDITION else ""
    return ""


async def _serving(client: AsyncClient) -> str:
    return version((await client.info()).fingerprints)


def _rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def damage(root: Path) -> Path:
        path = root / name
        path.write_bytes(change(path.read_bytes()))
        return root

    return damage


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Path]:
    """Another manifest; nothing that it vouches for is touched, so every hash is right."""

    def changed(content: bytes) -> bytes:
        values = json.loads(content)
        change(values)
        return json.dumps(values).encode()

    return _rewritten(bundle.MANIFEST_NAME, changed)


def _missing(name: str) -> Callable[[Path], Path]:
    def damage(root: Path) -> Path:
        (root / name).unlink()
        return root

    return damage


def _foreign(change: Callable[[bundle.Manifest], bundle.Manifest]) -> Callable[[Path], Path]:
    """A bundle without a fault that is no successor, or lies: written as an export writes one."""

    def damage(root: Path) -> Path:
        found = bundle.load(root)
        fresh = root.with_name(f"{root.name}-written")
        bundle.write(fresh, change(found.manifest), {name: found.file(name) for name in found.manifest.files})
        return fresh

    return damage


def _other_labels(manifest: bundle.Manifest) -> bundle.Manifest:
    first, *others = manifest.heads
    return dataclasses.replace(manifest, heads=(dataclasses.replace(first, labels=first.labels[::-1]), *others))


def _other_space(manifest: bundle.Manifest) -> bundle.Manifest:
    def moved(variant: bundle.Variant) -> bundle.Variant:
        prints = dataclasses.replace(variant.fingerprints, embedding_space="0" * 16)
        return dataclasses.replace(variant, fingerprints=prints)

    return dataclasses.replace(manifest, variants={name: moved(one) for name, one in manifest.variants.items()})


def _other_golden(manifest: bundle.Manifest) -> bundle.Manifest:
    def lying(variant: bundle.Variant) -> bundle.Variant:
        golden = tuple(
            dataclasses.replace(one, embedding=tuple(-value for value in one.embedding)) for one in variant.golden
        )
        return dataclasses.replace(variant, golden=golden)

    return dataclasses.replace(manifest, variants={name: lying(one) for name, one in manifest.variants.items()})


# What is done to a copy of the bundle, and a part of the reason for which it must be refused.
KINDS: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    "manifest missing": (_missing(bundle.MANIFEST_NAME), "bundle.json: is missing"),
    "manifest cut": (_rewritten(bundle.MANIFEST_NAME, lambda content: content[: len(content) // 2]), "not valid JSON"),
    "format of tomorrow": (_manifest(lambda values: values.update(format_version=999)), "format_version 999"),
    "changed manifest": (_manifest(lambda values: values.update(surprise=1)), "was changed: its digest"),
    "graph missing": (_missing(_GRAPH), f"{_GRAPH}: is missing"),
    "graph cut": (_rewritten(_GRAPH, lambda content: content[:-1000]), "bundle.json says"),
    "bit of the graph": (_rewritten(_GRAPH, _flipped), f"{_GRAPH}: was changed"),
    "bit of the tokenizer": (_rewritten(bundle.TOKENIZER, _flipped), f"{bundle.TOKENIZER}: was changed"),
    "golden answers of another model": (_foreign(_other_golden), "answers golden texts wrongly"),
    "labels in another order": (_foreign(_other_labels), "stands where the model that serves has"),
    "another embedding space": (_foreign(_other_space), "cannot be compared"),
    "no bundle at all": (lambda root: root / "nowhere", "no such directory"),
}

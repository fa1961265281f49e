"""Loads, reloads, workers and files that hang or come too often: none of them may hold up calls or operators."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import onnx
import polyhead_bundle as bundle
from onnx import TensorProto, helper, numpy_helper
from polyhead.v1 import admin_service_pb2 as admin_pb2
from polyhead.v1 import admin_service_pb2_grpc
from polyhead_client import AsyncClient, PolyheadError
from polyhead_server.security import api_keys

from bench.harness.servers import free_port
from tests.reliability.processes import Server, children, count_listeners, run_server, wait_until
from tests.reliability.reference_answers import version
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.scenarios.restarts_and_reloads import replace_link
from tests.reliability.traffic import Traffic
from tests.reliability.unprotected_server import without

_START_TIMEOUT_S, _UNLIMITED_S = 8, 100_000
_RELOAD_S, _CONTROL_S = 30.0, 10.0
_ADMIN_DEADLINE_S = 8.0
_STORM = 100
# One begins with the storm and one waits; a fast machine begins another while it lasts.
_MAX_RELOADS = 3


@scenario(
    "endless load",
    fault="SIGHUP with a bundle whose graph loops forever and whose digests are right; then with a good one",
    expected="The first is refused after --start-timeout-s, the old model answers meanwhile, and the second is served",
)
async def endless_load(context: Context) -> Verdict:
    """The control has a limit that is never reached."""
    traffic, refused, served = await _load_endlessly(context, _START_TIMEOUT_S)
    _, _, control_served = await _load_endlessly(context, _UNLIMITED_S)
    return Verdict(
        observed=f"the endless load was refused: {_yes(refused)}; the next bundle is served: {_yes(served)}; "
        f"{traffic.failures()} of {len(traffic.requests):,} items without a correct answer",
        passed=refused and served and not traffic.failures() and len(traffic.requests) >= 100,
        control=f"without a limit, the next bundle is served within {_CONTROL_S:g} s: {_yes(control_served)}",
        control_failed=not control_served,
        figures={"items": len(traffic.requests), "failed_items": traffic.failures()},
    )


async def _load_endlessly(context: Context, timeout_s: int) -> tuple[Traffic, bool, bool]:
    """Returns the traffic, whether the endless load was refused, and whether the next bundle was served."""
    folder = context.work_dir / str(timeout_s)
    folder.mkdir()
    link, endless = folder / "served", _write_endless_bundle(context.bundle, folder / "endless")
    replace_link(link, context.bundle)
    traffic = Traffic(context.reference_answers, context.texts)
    async with (
        run_server(link, folder, "--start-timeout-s", str(timeout_s)) as server,
        AsyncClient(server.target) as client,
        traffic.flowing([client], calls=1, streams=1),
    ):
        replace_link(link, endless)
        server.process.send_signal(signal.SIGHUP)
        # The load resolves the link soon after it has begun.
        await _logs(server, ": reloading", _RELOAD_S)
        await asyncio.sleep(2.0)
        limited = timeout_s < _UNLIMITED_S
        refused = limited and await _logs(server, f"took longer than {timeout_s} s", timeout_s + _RELOAD_S)
        replace_link(link, context.other_bundle)
        server.process.send_signal(signal.SIGHUP)
        expected, end = context.reference_answers.versions[1], time.monotonic() + (_RELOAD_S if limited else _CONTROL_S)
        while not (served := version((await client.info()).fingerprints) == expected) and time.monotonic() < end:
            await asyncio.sleep(0.1)
        await traffic.flow_until(100)
    return traffic, refused, served


def _write_endless_bundle(source: Path, target: Path) -> Path:
    """Writes a bundle whose sentiment head computes a loop of 2**62 rounds before it answers."""
    original = bundle.load(source)
    manifest = original.manifest
    output = manifest.heads[-1].output
    files = {name: source / name for name in manifest.files}
    for variant in {one.file for one in manifest.variants.values()}:
        looping = target.with_name(f"looping-{Path(variant).name}")
        onnx.save(_with_loop(onnx.load(source / variant), output), looping)
        files[variant] = looping
    return bundle.write(target, manifest, files).path


def _with_loop(model: Any, output: str) -> Any:
    """Adds a loop to a graph, between an output and the node that computes it."""
    scalar = partial(helper.make_tensor_value_info, shape=[])
    body = helper.make_graph(
        [helper.make_node("Identity", ["again"], ["go_on"]), helper.make_node("Add", ["value", "loop_one"], ["more"])],
        "body",
        [scalar("round", TensorProto.INT64), scalar("again", TensorProto.BOOL), scalar("value", TensorProto.FLOAT)],
        [scalar("go_on", TensorProto.BOOL), scalar("more", TensorProto.FLOAT)],
    )
    constants = {"loop_one": np.float32(1), "loop_zero": np.float32(0), "loop_yes": np.bool_(True)}
    constants["loop_rounds"] = np.int64(2**62)
    graph = model.graph
    graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in constants.items())
    for node in graph.node:
        node.output[:] = [f"inner_{name}" if name == output else name for name in node.output]
    graph.node.extend(
        [
            helper.make_node("ReduceMax", [f"inner_{output}"], ["loop_start"], keepdims=0),
            helper.make_node("Loop", ["loop_rounds", "loop_yes", "loop_start"], ["loop_end"], body=body),
            helper.make_node("Mul", ["loop_end", "loop_zero"], ["loop_nothing"]),
            helper.make_node("Add", [f"inner_{output}", "loop_nothing"], [output]),
        ]
    )
    return model


@scenario(
    "reload storm",
    fault=f"{_STORM} SIGHUPs within a second",
    expected="One reload runs and one waits at any time; all items are answered",
)
async def reload_storm(context: Context) -> Verdict:
    """The control runs every reload that is requested."""
    traffic, reloads = await _storm(context)
    _, control_reloads = await _storm(context, without("reload-queue"))
    return Verdict(
        observed=f"{reloads} reloads; {traffic.failures()} of {len(traffic.requests):,} items without a correct answer",
        passed=1 < reloads <= _MAX_RELOADS and not traffic.failures() and len(traffic.requests) >= 100,
        control=f"without coalescing, {control_reloads} reloads in {2 * _RELOAD_S:g} s",
        control_failed=control_reloads > _MAX_RELOADS,
        figures={"reloads": reloads, "items": len(traffic.requests), "failed_items": traffic.failures()},
    )


async def _storm(context: Context, wrap: Sequence[str] = ()) -> tuple[Traffic, int]:
    """Returns the traffic, and the number of reloads that have begun once none runs, or there are too many."""
    folder = context.work_dir / ("control" if wrap else "server")
    folder.mkdir()
    traffic = Traffic(context.reference_answers, context.texts)
    async with (
        run_server(context.bundle, folder, wrap=wrap) as server,
        AsyncClient(server.target) as client,
        traffic.flowing([client], calls=1, streams=1),
    ):
        for _ in range(_STORM):
            server.process.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.005)
        end, idle = time.monotonic() + 2 * _RELOAD_S, False
        while time.monotonic() < end:
            log = server.log.read_text()
            # The first model is served without a reload.
            begun, done = log.count(": reloading"), log.count(": serving ") - 1
            # Between two reloads, none runs for a moment.
            idle_before, idle = idle, done >= begun
            if begun > _MAX_RELOADS or (idle_before and idle):
                break
            await asyncio.sleep(0.5)
        await traffic.flow_until(100)
        return traffic, server.log.read_text().count(": reloading")


@scenario(
    "stopped worker and operators",
    fault="One of two workers is stopped with SIGSTOP; an operator asks for statistics, reloads and drains",
    expected=f"Each command is answered within {_ADMIN_DEADLINE_S:g} s: statistics by the other worker, the others "
    "with a failure",
)
async def stopped_worker(context: Context) -> Verdict:
    """The control waits for a worker as long as it takes."""
    outcomes = await _command_stopped_worker(context)
    control = await _command_stopped_worker(context, without("response-timeout"))
    expected = {"stats": "1 worker", "reload": "FAILED_PRECONDITION", "drain": "INTERNAL"}
    return Verdict(
        observed=", ".join(f"{name}: {outcome}" for name, outcome in outcomes.items()),
        passed=outcomes == expected,
        control="without a limit, " + ", ".join(f"{name}: {outcome}" for name, outcome in control.items()),
        control_failed=set(control.values()) == {"DEADLINE_EXCEEDED"},
    )


async def _command_stopped_worker(context: Context, wrap: Sequence[str] = ()) -> dict[str, str]:
    """Returns the outcome of each command."""
    folder = context.work_dir / ("control" if wrap else "server")
    folder.mkdir()
    admin = f"127.0.0.1:{free_port()}"
    async with run_server(context.bundle, folder, "--workers", "2", "--admin-listen", admin, wrap=wrap) as server:
        await wait_until(partial(_both_serve, server), "the workers did not start")
        victim = min(children(server.process.pid))
        os.kill(victim, signal.SIGSTOP)
        outcomes = {}
        async with grpc.aio.insecure_channel(admin) as channel:
            stub: Any = admin_service_pb2_grpc.AdminServiceStub(channel)
            requests: dict[str, Awaitable[Any]] = {
                "stats": stub.GetStats(admin_pb2.GetStatsRequest(), timeout=_ADMIN_DEADLINE_S),
                "reload": stub.Reload(admin_pb2.ReloadRequest(), timeout=_ADMIN_DEADLINE_S),
                "drain": stub.Drain(admin_pb2.DrainRequest(), timeout=_ADMIN_DEADLINE_S),
            }
            for name, request in requests.items():
                try:
                    response = await request
                    outcomes[name] = f"{len(response.workers)} worker" if name == "stats" else "OK"
                except grpc.aio.AioRpcError as error:
                    outcomes[name] = error.code().name
        os.kill(victim, signal.SIGCONT)
    return outcomes


def _both_serve(server: Server) -> bool:
    return "all 2 workers serve" in server.log.read_text() and count_listeners(server.port) == 2


@scenario(
    "key file that hangs",
    fault="The key file is replaced by a named pipe that nobody writes to, and later by a valid file with another key",
    expected="Calls with the old key are answered until the new file is there; then the new key is accepted",
)
async def hanging_key_file(context: Context) -> Verdict:
    """The control reads changed files on the event loop."""
    during, after = await _replace_keys(context)
    control_during, _ = await _replace_keys(context, without("file-thread"))
    return Verdict(
        observed=f"old key during the fault: {during}; new key after it: {after}",
        passed=during == after == "answered",
        control=f"with files that are read on the event loop, old key during the fault: {control_during}",
        control_failed=control_during != "answered",
    )


async def _replace_keys(context: Context, wrap: Sequence[str] = ()) -> tuple[str, str]:
    """Returns the outcome of a call during the fault, and of one with the new key afterwards."""
    folder = context.work_dir / ("control" if wrap else "server")
    folder.mkdir()
    path, pipe, fresh = folder / "keys.toml", folder / "pipe", folder / "fresh.toml"
    old, new = api_keys.create(path, "old", ["infer"], None), api_keys.create(fresh, "new", ["infer"], None)
    async with run_server(context.bundle, folder, "--api-keys", str(path), wrap=wrap) as server:
        os.mkfifo(pipe, 0o600)
        pipe.rename(path)
        await asyncio.sleep(1.5)
        during = await _call(context, server, old)
        if during != "answered":
            server.process.kill()
            return during, "not tried"
        fresh.rename(path)
        await _logs(server, "read again", _RELOAD_S)
        return during, await _call(context, server, new)


async def _call(context: Context, server: Server, key: str) -> str:
    try:
        async with AsyncClient(server.target, api_key=key) as client:
            (answer,) = await client.analyze(context.texts[:1], deadline_s=5)
    except PolyheadError as error:
        return error.code
    return "answered" if answer.result else "failed"


async def _logs(server: Server, text: str, timeout_s: float) -> bool:
    """Waits until a text stands in the log of a server; returns whether it does."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while text not in server.log.read_text():
                await asyncio.sleep(0.1)
    return text in server.log.read_text()


def _yes(value: bool) -> str:
    return "yes" if value else "no"

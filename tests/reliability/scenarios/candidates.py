"""A new model beside the served one: promoted and taken back under load, and as a canary whose engine is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from polyhead_client import AsyncClient

from bench.harness.servers import BIN
from tests.reliability.processes import run_server, wait_until
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import PlainClient, Traffic

_COMMAND_S = 120.0
# Items of each version that must have flowed between two changes.
_ITEMS = 100


class _Admin:
    """The admin service of a server, by ``polyhead admin``."""

    def __init__(self, folder: Path) -> None:
        self.target = f"unix:{folder}/admin"
        self.flags = ("--admin-listen", self.target)

    async def run(self, *arguments: str) -> str:
        """Runs a command and returns its output.

        Raises:
            RuntimeError: It failed.
        """
        process = await asyncio.create_subprocess_exec(
            str(BIN / "polyhead"),
            "admin",
            *arguments,
            "--target",
            self.target,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, error = await asyncio.wait_for(process.communicate(), _COMMAND_S)
        if process.returncode:
            raise RuntimeError(error.decode())
        return output.decode()


@scenario(
    "promotions and returns",
    fault="A candidate with another head is compared on live texts and promoted, and then a reload takes it back, "
    "under load",
    expected="No item fails; every answer is the correct answer of the version that it names; once a command has "
    "returned, no item that is sent later is answered by the version before it",
)
async def promotions(context: Context) -> Verdict:
    """Uses stubs without retries. The control asks for the version before the change among later answers."""
    times = context.scaled(20, 2)
    admin = _Admin(context.work_dir)
    traffic = Traffic(context.reference_answers, context.texts)
    durations: list[float] = []
    # Time at which a change was asked for, time at which the command returned, version from then on.
    changes: list[tuple[float, float, str]] = []
    compared = 0
    async with (
        run_server(context.bundle, context.work_dir, *admin.flags) as server,
        PlainClient(server.target) as client,
        traffic.flowing([client]),
    ):
        await traffic.flow_until(_ITEMS)
        for number in range(times):
            begins = time.monotonic()
            if number % 2:
                await admin.run("reload")
            else:
                await admin.run("shadow", str(context.other_bundle), "--share", "1", "--priority", "normal")
                await traffic.flow_until(_ITEMS)
                compared += json.loads(await admin.run("compare", "--json"))["shadow"]["answered"]
                begins = time.monotonic()
                await admin.run("promote")
            changes.append((begins, time.monotonic(), context.reference_answers.versions[(number + 1) % 2]))
            durations.append(changes[-1][1] - begins)
            await traffic.flow_until(_ITEMS)
    stale = _stale(traffic, changes)
    control = _stale(traffic, [(begins, ends, _other(context, name)) for begins, ends, name in changes])
    outcomes = traffic.outcomes()
    return Verdict(
        observed=f"{times} promotions and returns, {len(traffic.requests):,} items of stubs without retries: "
        f"{traffic.failures()} without a correct answer, {stale} answered by a version that was not in force; "
        f"{compared:,} texts were seen by comparisons; a change took {statistics.median(durations):.1f} s",
        passed=not traffic.failures() and not stale and traffic.covers(*(begins for begins, _, _ in changes)),
        control=f"judged by the version before each change, {control:,} items are stale",
        control_failed=control > 0,
        figures={
            "changes": times,
            "items": len(traffic.requests),
            "failed_items": sum(outcomes.values()) - outcomes["correct"],
            "stale_items": stale,
            "change_median_s": statistics.median(durations),
        },
    )


def _stale(traffic: Traffic, changes: Sequence[tuple[float, float, str]]) -> int:
    """Number of items that were sent after a change, answered before the next, and by another version."""
    stale = 0
    ends = [begins for begins, _, _ in changes[1:]] + [float("inf")]
    for (_, begins, current), end in zip(changes, ends, strict=True):
        stale += sum(
            one.version != current
            for one in traffic.requests
            if one.outcome == "correct" and begins <= one.sent and one.done < end
        )
    return stale


def _other(context: Context, name: str) -> str:
    (other,) = set(context.reference_answers.versions) - {name}
    return other


@scenario(
    "killed canary",
    fault="The engine of a canary that answers all callers is killed with SIGKILL under load, repeatedly",
    expected="The canary is rolled back, no item of the shipped client fails, and every answer is the correct answer "
    "of the version that it names",
)
async def killed_canary(context: Context) -> Verdict:
    """The control kills the served model's process instead."""
    kills = context.scaled(20, 2)
    admin = _Admin(context.work_dir)
    traffic = Traffic(context.reference_answers, context.texts)
    moments: list[float] = []
    rolled_back = 0
    async with (
        run_server(context.bundle, context.work_dir, *admin.flags) as server,
        AsyncClient(server.target) as client,
        traffic.flowing([client]),
    ):
        await traffic.flow_until(_ITEMS)
        for _ in range(kills):
            await admin.run("canary", str(context.other_bundle), "--share", "100%", "--max-p99-ratio", "0")
            await traffic.flow_until(_ITEMS)
            moments.append(time.monotonic())
            os.kill(_engine_of(server.process.pid), signal.SIGKILL)
            await traffic.flow_until(_ITEMS)
            state = json.loads(await admin.run("compare", "--json"))["canary"]
            rolled_back += "ended with code -9" in state["rollback"]
            await admin.run("discard")
    versions = Counter(one.version for one in traffic.requests if one.outcome == "correct")
    control = await _kill_server(context)
    return Verdict(
        observed=f"{kills} kills, {rolled_back} roll-backs, {len(traffic.requests):,} items: {traffic.failures()} "
        f"without a correct answer; {versions[context.reference_answers.versions[1]]:,} answered by the candidate",
        passed=not traffic.failures() and rolled_back == kills and len(versions) == 2 and traffic.covers(*moments),
        control=f"a killed server of one process: {control.failures():,} of {len(control.requests):,} items failed",
        control_failed=control.failures() > 0,
        figures={
            "kills": kills,
            "roll_backs": rolled_back,
            "items": len(traffic.requests),
            "failed_items": traffic.failures(),
        },
    )


async def _kill_server(context: Context) -> Traffic:
    traffic = Traffic(context.reference_answers, context.texts)
    async with (
        run_server(context.bundle, context.work_dir) as server,
        PlainClient(server.target) as client,
        traffic.flowing([client]),
    ):
        await traffic.flow_until(_ITEMS)
        server.process.kill()
        await wait_until(lambda: traffic.failures() > 0, "a killed server still answers")
    return traffic


def _engine_of(server: int) -> int:
    """Returns the process of a canary's engine."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            parent = int((file.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if b"candidate_engine" in file.read_bytes() and parent == server:
                return int(file.parent.name)
    raise RuntimeError("the canary has no engine")

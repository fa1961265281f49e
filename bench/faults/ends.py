"""What surrounds the server goes wrong: its supervisor, its memory, its clock, the files that it serves."""

from __future__ import annotations

import asyncio
import os
import random
import re
import resource
import shutil
import signal
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from polyhead_client import AsyncClient, PolyheadError

from .case import Finding, Place, case
from .processes import children, finish, free_port, listeners, running, start
from .traffic import PlainClient, Traffic

_GONE_S = 10.0


@case(
    "killed supervisor",
    fault="the supervisor of two workers killed with SIGKILL under load, again and again",
    expected="its workers finish what they accepted and go; the port is free; a server that is started there serves",
)
async def killed_supervisor(place: Place) -> Finding:
    """The control: a worker that is stopped does not go, and is seen."""
    times = place.many(5, 1)
    address, gone, lost = f"127.0.0.1:{free_port()}", [], 0
    orphans_seen = False
    for number in range(times):
        server = start(place.bundle, place.folder / "server.log", "--workers", "2", target=address)
        try:
            await server.serving()
            await _until(lambda: listeners(server.port) == 2, "the workers did not come up")
            workers = children(server.process.pid)
            traffic = Traffic(place.offline, place.texts)
            async with AsyncClient(server.target) as client, traffic.flowing([client], streams=0):
                await traffic.flow_until(100)
                if number == 0:
                    os.kill(workers[0], signal.SIGSTOP)
                began = time.monotonic()
                await server.end(signal.SIGKILL)
                if number == 0:
                    await asyncio.sleep(2.0)
                    orphans_seen = _runs(workers[0])
                    os.kill(workers[0], signal.SIGCONT)
                # Nobody is there to answer new calls; what was accepted has been answered.
                traffic.stop()
                await _until(partial(_all_gone, workers), "workers outlived their supervisor")
                gone.append(time.monotonic() - began)
            lost += sum(one.outcome == "wrong" for one in traffic.requests)
        finally:
            await finish(server)
    async with running(place.bundle, place.folder, target=address) as server, AsyncClient(server.target) as client:
        traffic = Traffic(place.offline, place.texts)
        async with traffic.flowing([client]):
            await traffic.flow_until(100)
    return Finding(
        seen=f"{times} kills: all workers gone after at most {max(gone[1:] or gone):.1f} s, {lost} wrong answers; of "
        f"{len(traffic.requests)} items of a new server on the port {traffic.bad()} were not answered rightly",
        passed=not lost and not traffic.bad(),
        control="a worker that was stopped meanwhile was seen to outlive it" if orphans_seen else "nothing was seen",
        control_failed=orphans_seen,
        figures={"kills": times, "gone_most_s": max(gone[1:] or gone)},
    )


@case(
    "passed deadlines",
    fault="a server that stands still until the deadline of everything that it accepted has passed",
    expected="only what was computed before it stood still was computed: nothing of the rest",
)
async def passed_deadlines(place: Place) -> Finding:
    """SIGSTOP, and what the server's own metrics say it computed. The control: without a deadline all is computed."""
    rounds = place.many(10, 3)
    text = "word " * 120
    found: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    metrics = f"127.0.0.1:{free_port()}"
    async with running(place.bundle, place.folder, "--metrics-listen", metrics) as server:
        async with AsyncClient(server.target) as client:
            await asyncio.gather(*(client.analyze([text] * 8) for _ in range(4)))
            for number in range(2 * rounds):
                has_deadline = number % 2 == 0
                before = await _computed(metrics)
                deadline_s = 2.0 if has_deadline else 30.0
                call = asyncio.create_task(client.analyze([text] * 32, deadline_s=deadline_s))
                await asyncio.sleep(0.1)
                server.process.send_signal(signal.SIGSTOP)
                stopped = time.monotonic()
                await asyncio.sleep(2.5)
                server.process.send_signal(signal.SIGCONT)
                (outcome,) = await asyncio.gather(call, return_exceptions=True)
                await asyncio.sleep(1.0)
                if isinstance(outcome, PolyheadError) != has_deadline:
                    raise SystemExit(f"the call ended otherwise than expected: {outcome}, after {stopped}")
                found[has_deadline].append((32, await _computed(metrics) - before))
    computed, all_of_them = (sum(number for _, number in found[kind]) for kind in (True, False))
    items = sum(items for items, _ in found[True])
    return Finding(
        seen=f"{rounds} stops of 2.5 s: {computed} of {items} texts were computed, all in the 0.1 s before the stop or in "
        "a pass that had begun",
        passed=computed < items / 2,
        control=f"without a deadline: {all_of_them} of {items}",
        control_failed=all_of_them == items,
        figures={"texts": items, "computed": computed, "computed_without_deadline": all_of_them},
    )


@case(
    "not enough memory",
    fault="a worker of two that may not take more memory than it has, while large messages come",
    expected="whatever becomes of the worker, with the shipped client no item fails or is answered wrongly",
)
async def not_enough_memory(place: Place) -> Finding:
    """RLIMIT_AS of a running worker, over and over, as the supervisor starts fresh ones."""
    traffic = Traffic(place.offline, [*place.texts[:50], *("word " * (20 * n) + place.texts[n] for n in range(50))])
    before: list[int] = []
    async with running(place.bundle, place.folder, "--workers", "2") as server, AsyncClient(server.target) as client:
        await _until(lambda: listeners(server.port) == 2, "the workers did not come up")
        async with traffic.flowing([client], calls=4, items=32, streams=2):
            await traffic.flow_until(100)
            begun = time.monotonic()
            for _ in range(place.many(5, 2)):
                victim = min(children(server.process.pid))
                before.append(victim)
                size = int(Path(f"/proc/{victim}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
                resource.prlimit(victim, resource.RLIMIT_AS, (size, size))
                await asyncio.sleep(4.0)
                await _until(lambda: listeners(server.port) == 2, "the workers did not come back")
            died = sum(not _runs(pid) for pid in before)
            ended = time.monotonic()
            await traffic.flow_until(100)
        tight = await _start_within(place, 300 * 2**20)
    return Finding(
        seen=f"{len(before)} limits, {died} workers died of them; {len(traffic.requests):,} items: {traffic.bad()} without "
        f"a right answer ({dict(traffic.outcomes())})",
        passed=not traffic.bad() and traffic.enough(begun, ended),
        control=f"a server that may take 300 MB of addresses in all does not come up: exit code {tight}",
        control_failed=tight != 0,
        figures={"limits": len(before), "died": died, "items": len(traffic.requests), "bad_items": traffic.bad()},
    )


async def _start_within(place: Place, size: int) -> int:
    """Exit code of a server that is started under a limit of its address space."""
    server = start(place.bundle, place.folder / "tight.log", wrap=["prlimit", f"--as={size}"])
    try:
        return await asyncio.to_thread(server.process.wait, 60)
    finally:
        await finish(server)


@case(
    "bundle overwritten",
    fault="the files of the bundle overwritten, cut and removed while it is served",
    expected="answers stay what they are; a start on what is left is refused",
)
async def bundle_overwritten(place: Place) -> Finding:
    """The control is the start: the damage is real."""
    copy = place.folder / "bundle"
    shutil.copytree(place.bundle, copy)
    traffic = Traffic(place.offline, place.texts)
    moments: list[float] = []
    async with running(copy, place.folder) as server, AsyncClient(server.target) as client, traffic.flowing([client]):
        await traffic.flow_until(100)
        for damage in (_overwrite, _cut, _remove):
            moments.append(time.monotonic())
            await asyncio.to_thread(damage, copy)
            await traffic.flow_until(100)
    shutil.copytree(place.bundle, copy, dirs_exist_ok=True)
    _overwrite(copy)
    again = start(copy, place.folder / "again.log")
    code = await asyncio.to_thread(again.process.wait, 60)
    return Finding(
        seen=f"{len(traffic.requests):,} items: {traffic.bad()} without a right answer",
        passed=not traffic.bad() and traffic.enough(*moments),
        control=f"a server that is started on the damaged files leaves with exit code {code}",
        control_failed=code == 2,
        figures={"items": len(traffic.requests), "bad_items": traffic.bad()},
    )


def _files(bundle: Path) -> list[Path]:
    return [path for path in bundle.rglob("*") if path.is_file()]


def _overwrite(bundle: Path) -> None:
    for path in _files(bundle):
        with path.open("r+b") as stream:
            stream.seek(path.stat().st_size // 2)
            stream.write(b"\xff" * min(10**6, path.stat().st_size // 2))


def _cut(bundle: Path) -> None:
    for path in _files(bundle):
        os.truncate(path, path.stat().st_size // 3)


def _remove(bundle: Path) -> None:
    for path in _files(bundle):
        path.unlink()


@case(
    "texts larger than a pass",
    fault="texts of 128 tokens for a server whose passes hold 16",
    expected="each goes alone and is answered rightly",
)
async def texts_larger_than_a_pass(place: Place) -> Finding:
    """The control: a client that refuses truncation is refused, so they are as long as they should be."""
    texts = ["word " * 200 + text for text in place.texts[:20]] + place.texts[:20]
    traffic = Traffic(place.offline, texts)
    async with running(place.bundle, place.folder, "--max-batch-tokens", "16") as server:
        async with AsyncClient(server.target) as client:
            async with traffic.flowing([client]):
                await traffic.flow_until(place.many(500, 100))
            refused = await client.analyze(texts[:20], truncation="error")
    reasons = [one.error.reason for one in refused if one.error]
    return Finding(
        seen=f"{len(traffic.requests):,} items: {traffic.bad()} without a right answer",
        passed=not traffic.bad() and len(traffic.requests) >= 100,
        control=f"{reasons.count('TEXT_TOO_LONG')} of 20 are refused as too long by a client that asks for that",
        control_failed=reasons.count("TEXT_TOO_LONG") == 20,
        figures={"items": len(traffic.requests), "bad_items": traffic.bad()},
    )


@case(
    "frozen worker",
    fault="one of two workers stands still (SIGSTOP) for 5 s under load",
    expected="late answers, none wrong, none lost",
)
async def frozen_worker(place: Place) -> Finding:
    """The control: calls with a short deadline on connections to both workers fail."""
    traffic = Traffic(place.offline, place.texts)
    async with running(place.bundle, place.folder, "--workers", "2") as server, AsyncClient(server.target) as client:
        await _until(lambda: listeners(server.port) == 2, "the workers did not come up")
        plain = [PlainClient(server.target) for _ in range(8)]
        for one in plain:
            await one.analyze([("", place.texts[0])], deadline_s=10)
        async with traffic.flowing([client], calls=8):
            await traffic.flow_until(100)
            begun = time.monotonic()
            victim = children(server.process.pid)[0]
            os.kill(victim, signal.SIGSTOP)
            tries: list[Awaitable[object]] = [one.analyze([("", place.texts[0])], deadline_s=2) for one in plain]
            missed = sum(isinstance(one, PolyheadError) for one in await asyncio.gather(*tries, return_exceptions=True))
            await asyncio.sleep(3.0)
            os.kill(victim, signal.SIGCONT)
            ended = time.monotonic()
            await traffic.flow_until(100)
        for one in plain:
            await one.channel.close()
    longest = max(one.done - one.sent for one in traffic.requests)
    after = traffic.outcomes(since=ended)
    return Finding(
        seen=f"{len(traffic.requests):,} items: {traffic.bad()} without a right answer; the longest took {longest:.1f} s",
        passed=not traffic.bad() and after["right"] >= 100 and traffic.outcomes(until=begun)["right"] >= 100,
        control=f"{missed} of 8 single calls with a deadline of 2 s, over a connection each, failed meanwhile",
        control_failed=missed > 0,
        figures={"items": len(traffic.requests), "bad_items": traffic.bad(), "longest_s": longest},
    )


async def _computed(metrics: str) -> int:
    """Texts that the server says it has computed."""
    return await _metric(metrics, "polyhead_items_total")


async def _metric(metrics: str, name: str) -> int:
    """A number among the server's metrics; 0 where it is not there."""
    url = f"http://{metrics}/metrics"
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=30).read().decode())
    found = re.search(rf"^{name} (\S+)", page, re.MULTILINE)
    return int(float(found[1])) if found else 0


def _all_gone(pids: Sequence[int]) -> bool:
    return not any(map(_runs, pids))


def _runs(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def _until(done: Callable[[], bool], problem: str) -> None:
    end = time.monotonic() + _GONE_S + 20
    while not done():
        if time.monotonic() > end:
            raise SystemExit(problem)
        await asyncio.sleep(0.02)


@case(
    "cancels at every stage",
    fault="calls that are cancelled after 0 to 80 ms: before they are read, while they wait, in their pass, on the way back",
    expected="nothing of them stays in the server, and calls beside them are answered",
)
async def cancels_at_every_stage(place: Place) -> Finding:
    """The control: calls that are running are seen by the same measure."""
    calls = place.many(3_000, 300)
    rng = random.Random(0)
    metrics = f"127.0.0.1:{free_port()}"
    traffic = Traffic(place.offline, place.texts)
    cancelled = finished = 0
    async with running(place.bundle, place.folder, "--metrics-listen", metrics) as server:
        async with AsyncClient(server.target) as client:
            async with traffic.flowing([client], calls=1, items=1, streams=1):
                for _ in range(calls // 20):
                    tasks = [asyncio.create_task(client.analyze(rng.choices(place.texts, k=4))) for _ in range(20)]
                    for task in tasks:
                        await asyncio.sleep(rng.uniform(0, 0.008))
                        task.cancel()
                    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                        cancelled += isinstance(outcome, BaseException)
                        finished += isinstance(outcome, list)
                during = await _metric(metrics, "polyhead_calls")
            await asyncio.sleep(1.0)
            # A pass after all of them, so that what is told of the queue is of now.
            await client.analyze(place.texts[:1])
            left = [await _metric(metrics, name) for name in ("polyhead_calls", "polyhead_queued_items")]
    return Finding(
        seen=f"{cancelled:,} calls cancelled, {finished} finished first; {left[0]} calls and {left[1]} texts are left; "
        f"{traffic.bad()} of {len(traffic.requests):,} items beside them without a right answer",
        passed=left == [0, 0] and not traffic.bad() and len(traffic.requests) >= 100 and cancelled > calls / 2,
        control=f"while calls run, {during} are seen",
        control_failed=during > 0,
        figures={"cancelled": cancelled, "finished": finished, "items": len(traffic.requests)},
    )

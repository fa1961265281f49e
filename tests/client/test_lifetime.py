"""Where and when a client is created, used and forgotten: event loops, threads, forks and the garbage collector."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
from polyhead_client import AsyncClient, Client, InvalidRequestError
from polyhead_client.streaming import Stream
from polyhead_client.transport.thread_runtime import ThreadRuntime

from tests.support.fake_server import FakeServicer, label, labels


async def ask(client: AsyncClient) -> list[str]:
    unary = await client.analyze(["unary"], deadline_s=10)
    streamed = [answer async for answer in client.stream(["streamed"], deadline_s=10)]
    return labels([*unary, *streamed])


def test_asyncio_client_made_outside_of_a_loop_is_used_in_several(servicer: FakeServicer) -> None:
    client = AsyncClient(servicer.target)
    for _ in range(3):
        assert asyncio.run(ask(client)) == ["unary", "streamed"]
    asyncio.run(client.close())
    with pytest.raises(InvalidRequestError, match="closed"):
        asyncio.run(ask(client))


def test_asyncio_client_made_in_a_loop_is_used_after_its_end(servicer: FakeServicer) -> None:
    async def create() -> AsyncClient:
        client = AsyncClient(servicer.target)
        await ask(client)
        return client

    client = asyncio.run(create())
    assert asyncio.run(ask(client)) == ["unary", "streamed"]


def test_stream_made_outside_of_a_loop_runs_in_the_one_that_iterates_it(servicer: FakeServicer) -> None:
    answers = AsyncClient(servicer.target).stream(["one", "two"])

    async def collect() -> list[str]:
        return [label(answer) async for answer in answers]

    assert asyncio.run(collect()) == ["one", "two"]


def test_asyncio_client_in_two_running_loops_is_an_error_that_says_so(servicer: FakeServicer) -> None:
    client = AsyncClient(servicer.target)
    in_use, done = threading.Event(), threading.Event()

    async def use() -> None:
        await ask(client)
        in_use.set()
        await asyncio.to_thread(done.wait, 20)

    thread = threading.Thread(target=lambda: asyncio.run(use()))
    thread.start()
    assert in_use.wait(20)
    for call in (lambda: ask(client), client.close):
        with pytest.raises(InvalidRequestError, match="create one in each event loop") as caught:
            asyncio.run(call())
        assert caught.value.reason == "OTHER_EVENT_LOOP"
    done.set()
    thread.join()
    assert asyncio.run(ask(client)) == ["unary", "streamed"]


def test_asyncio_client_without_asyncio_is_an_error_that_says_so() -> None:
    with pytest.raises(InvalidRequestError, match="requires a running asyncio event loop"):
        AsyncClient().analyze(["text"]).send(None)


def test_closing_a_client_that_was_never_used_opens_nothing() -> None:
    with Client() as client:
        pass
    asyncio.run(AsyncClient().close())
    with pytest.raises(InvalidRequestError, match="closed"):
        client.info()


def test_threads_share_a_client_from_its_first_call_on(servicer: FakeServicer) -> None:
    client = Client(servicer.target, connections=1)
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.extend(labels(client.analyze(["text"])))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    client.close()
    assert seen == ["text"] * 16
    assert len(set(servicer.peers)) == 1


FORK = """
import os, signal, sys
from polyhead_client import Client

client = Client(sys.argv[1])
if sys.argv[2] == "used":
    client.analyze(["parent"])
child = os.fork()
if child == 0:
    signal.alarm(20)
    with client:
        print(client.analyze(["child"], deadline_s=10)[0].sentiment.label, flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print(client.analyze(["parent"], deadline_s=10)[0].sentiment.label)
"""
# grpcio prints a traceback of its own if an event of a closed loop arrives while a second loop runs, so each of these
# programs has a single loop.
FORGOTTEN = {
    "running loop": """
import asyncio, gc, sys
from polyhead_client import AsyncClient

async def endless():
    while True:
        yield "text"
        await asyncio.sleep(0.001)

async def main():
    await AsyncClient(sys.argv[1]).analyze(["forgotten"])
    gc.collect()
    asyncio.create_task(AsyncClient(sys.argv[1]).analyze(["pending"]))
    async for answer in AsyncClient(sys.argv[1]).stream(endless()):
        print(answer.sentiment.label)
        break

asyncio.run(main())
""",
    "closed loop": """
import asyncio, sys
from polyhead_client import AsyncClient

kept = AsyncClient(sys.argv[1])
print(asyncio.run(kept.analyze(["text"]))[0].sentiment.label)
""",
    "no loop": """
import sys
from polyhead_client import Client

print(Client(sys.argv[1]).analyze(["text"])[0].sentiment.label)
""",
}


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program, *arguments]
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GRPC_VERBOSITY": "NONE"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("state", ["unused", "used"])
def test_client_connects_again_in_a_forked_process(servicer: FakeServicer, state: str) -> None:
    done = run(
        FORK.replace("import os,", "import warnings; warnings.simplefilter('ignore')\nimport os,"),
        servicer.target,
        state,
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["child", "parent"], "")


def test_stream_of_the_parent_process_is_left_alone(servicer: FakeServicer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a fork: gRPC does not promise that one succeeds beside its threads."""
    stopped: list[Stream] = []
    stop = Stream.stop

    async def record(stream: Stream) -> None:
        stopped.append(stream)
        await stop(stream)

    monkeypatch.setattr(Stream, "stop", record)
    with Client(servicer.target) as client:
        answers = client.stream(str(number) for number in range(5000))
        next(answers)
        with monkeypatch.context() as patch:
            patch.setattr(ThreadRuntime, "usable", lambda _: False)
            answers.close()  # type: ignore[attr-defined]  # it is a generator
        assert not stopped
        others = client.stream(str(number) for number in range(5000))
        next(others)
        others.close()  # type: ignore[attr-defined]
        assert len(stopped) == 1


@pytest.mark.parametrize("program", FORGOTTEN.values(), ids=FORGOTTEN)
def test_client_that_is_forgotten_unclosed_prints_nothing(servicer: FakeServicer, program: str) -> None:
    done = run(program, servicer.target)
    assert (done.returncode, done.stdout) == (0, "text\n")
    assert "Traceback" not in done.stderr
    assert "never retrieved" not in done.stderr

"""The serving process's side of a shadow: what it sends, what it drops, and that it never waits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from polyhead_server.candidate import sampler as sampler_module
from polyhead_server.candidate.sampler import Sampler
from polyhead_server.candidate.samples import MAX_PACKET_BYTES, Sample, Totals, decode, split_values
from polyhead_server.candidate.selection import is_selected
from polyhead_server.errors import InvalidRequestError
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import Flow, InvalidItem, Item, Message, RequestOptions, Result, Truncation
from polyhead_server.settings import Settings

from tests.support.fake_engine import embedding_of

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(1)
        yield listener


async def analyze(pipeline: Pipeline, texts: list[str], **options: object) -> None:
    items = tuple(Item(str(number), text) for number, text in enumerate(texts))
    message = Message(items, RequestOptions(**options))  # type: ignore[arg-type]
    for future in await pipeline.submit(message, Flow(), None):
        assert isinstance(await future, Result)
    await asyncio.sleep(0)


class Candidate:
    """The candidate's end of a sampler's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.setblocking(False)

    async def receive(self, count: int) -> list[tuple[Sample, Totals]]:
        loop = asyncio.get_running_loop()
        return [decode(await loop.sock_recv(self.connection, MAX_PACKET_BYTES)) for _ in range(count)]


Connect = Callable[[float], tuple[Sampler, Candidate]]


@pytest.fixture
async def connect(listener: socket.socket, tmp_path: Path, pipeline: Pipeline) -> AsyncIterator[Connect]:
    """Lets a sampler of a share observe the pipeline."""
    opened: list[tuple[Sampler, Candidate]] = []

    def make(share: float = 1.0) -> tuple[Sampler, Candidate]:
        sampler = Sampler(tmp_path / "socket", share, max_windows=4)
        pipeline.observers = [sampler.observe]
        opened.append((sampler, Candidate(listener.accept()[0])))
        return opened[-1]

    yield make
    for sampler, candidate in opened:
        sampler.close()
        candidate.connection.close()


@pytest.fixture
async def pipeline(model: Model, settings: Callable[..., Settings]) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(model, settings())
    pipeline.start()
    yield pipeline
    await pipeline.close()


async def test_share_of_the_texts_is_sent_with_its_answers(pipeline: Pipeline, model: Model, connect: Connect) -> None:
    sampler, candidate = connect(0.5)
    texts = [f"w{number}" for number in range(60)]
    selected = [text for text in texts if is_selected(text, 0.5)]
    assert 10 < len(selected) < 50
    await analyze(pipeline, texts)
    found = await candidate.receive(len(selected))
    assert sorted(sample.text for sample, _ in found) == sorted(selected)
    for sample, _ in found:
        embedding, *heads = split_values(sample.values, model.source.manifest)
        assert embedding.tolist() == embedding_of(sample.text)
        assert len(heads) == 2
        assert (sample.digest.hex(), sample.max_windows, sample.prompt) == ("d" * 64, 1, "")
    assert (sampler.answered, sampler.selected, sampler.dropped) == (60, len(selected), 0)
    assert found[-1][1].answered <= 60


async def test_options_of_the_message_are_sent(pipeline: Pipeline, connect: Connect) -> None:
    _, candidate = connect(1.0)
    await analyze(pipeline, ["w1"], prompt="query", truncation=Truncation.WINDOW)
    ((sample, _),) = await candidate.receive(1)
    assert (sample.text, sample.prompt, sample.max_windows) == ("w1", "query", 4)


async def test_candidate_that_does_not_read_loses_texts_and_delays_none(
    pipeline: Pipeline, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_module, "MAX_BACKLOG_BYTES", 3000)
    sampler, candidate = connect(1.0)
    count = 0
    while not sampler.dropped:
        await analyze(pipeline, [f"w{number % 200}" for number in range(500)])
        count += 500
    assert sampler.answered == sampler.selected == count
    # Once it reads again, it gets what waited, and then new texts.
    found = await candidate.receive(count - sampler.dropped)
    await asyncio.sleep(0.05)
    await analyze(pipeline, ["w7"])
    found += await candidate.receive(1)
    sample, totals = found[-1]
    assert sample.text == "w7"
    assert (totals.selected, totals.dropped) == (count + 1, sampler.dropped)


async def test_text_that_does_not_fit_into_the_socket_is_dropped_and_later_ones_are_sent(
    pipeline: Pipeline, connect: Connect
) -> None:
    sampler, candidate = connect(1.0)
    assert sampler._socket
    # The smallest buffer that the system gives.
    sampler._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    await analyze(pipeline, ["w1 " * 5000])
    await analyze(pipeline, ["w2"])
    ((sample, totals),) = await candidate.receive(1)
    assert (sample.text, totals.selected, totals.dropped) == ("w2", 2, 1)


async def test_candidate_that_ends_is_forgotten(pipeline: Pipeline, connect: Connect) -> None:
    sampler, candidate = connect(1.0)
    candidate.connection.close()
    for _ in range(3):
        await analyze(pipeline, ["w1"])
    assert sampler.selected == 1


async def test_invalid_and_cancelled_items_are_not_sent(pipeline: Pipeline, connect: Connect) -> None:
    _, candidate = connect(1.0)
    items = (InvalidItem("", InvalidRequestError("TEXT_NOT_UTF8", "x")), Item("", "w1"), Item("", "w2"))
    futures = await pipeline.submit(Message(items, RequestOptions()), Flow(), None)
    futures[1].cancel()
    await asyncio.wait(futures)
    await asyncio.sleep(0)
    ((sample, totals),) = await candidate.receive(1)
    assert (sample.text, totals.answered) == ("w2", 1)


def test_sampler_without_a_candidate_says_so(tmp_path: Path) -> None:
    async def connect() -> None:
        Sampler(tmp_path / "socket", 1.0, max_windows=4)

    with pytest.raises(OSError, match="No such file"):
        asyncio.run(connect())

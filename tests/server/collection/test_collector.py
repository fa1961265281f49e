"""The collector behind a pipeline: what it writes, what it drops and counts, and that it never disturbs an answer."""

from __future__ import annotations

import dataclasses
import errno
import gc
import json
import os
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from polyhead_server.collection import collector as module
from polyhead_server.collection import rows as rows_module
from polyhead_server.collection.collector import Collector
from polyhead_server.collection.row_files import RowFiles
from polyhead_server.collection.selection import Selection
from polyhead_server.errors import InvalidRequestError, StartupError
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import InvalidItem, Item, Message, RequestOptions, Result, Task
from polyhead_server.settings import Settings

from tests.support.submissions import message, outcomes

pytestmark = pytest.mark.timeout(60)


class Counts:
    """Counts what the collector reports; ``counted`` is set with every text."""

    def __init__(self) -> None:
        self.counted = threading.Event()
        self.collected: Counter[str] = Counter()
        self.uncollected: Counter[str] = Counter()
        self.stopped = False

    def count_collected(self, reason: str) -> None:
        self.collected[reason] += 1
        self.counted.set()

    def count_uncollected(self, reason: str) -> None:
        self.uncollected[reason] += 1
        self.counted.set()

    def set_collection_stopped(self, stopped: bool) -> None:
        self.stopped = stopped


class Held(RowFiles):
    """Files whose first row waits until it is released."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 2**20, 1)
        self.entered, self.released = threading.Event(), threading.Event()

    def append(self, row: bytes) -> None:
        self.entered.set()
        assert self.released.wait(30)
        super().append(row)


Start = Callable[..., tuple[Collector, Pipeline]]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer to write what waits than a server waits when it stops."""
    monkeypatch.setattr(module, "_CLOSE_TIMEOUT_S", 50.0)


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
async def start(
    model: Model, settings: Callable[..., Settings], tmp_path: Path, counts: Counts
) -> AsyncIterator[Start]:
    started: list[tuple[Collector, Pipeline]] = []

    def run(files: RowFiles | None = None, **arguments: Any) -> tuple[Collector, Pipeline]:
        files = files or RowFiles(tmp_path / "rows", 2**20, 1)
        collector = Collector(files, None, 0.01, counts, **arguments)
        draw_all(collector, model)
        pipeline = Pipeline(model, settings())
        pipeline.observers = [collector.observe]
        pipeline.start()
        started.append((collector, pipeline))
        return collector, pipeline

    yield run
    for collector, pipeline in started:
        await pipeline.close()
        await collector.close()


def draw_all(collector: Collector, model: Model) -> None:
    """Lets a collector draw every text at random."""
    sampler = collector.sampler(model)
    sampler.shares = dataclasses.replace(sampler.shares, random=1.0)
    sampler.selection = Selection(sampler.shares, lambda: 0.999)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Reads the rows of all files, each line of which must be complete."""
    found = []
    for path in sorted((folder / "rows").glob("*.jsonl")):
        content = path.read_text("utf-8")
        assert content.endswith("\n")
        found += [json.loads(line) for line in content.splitlines()]
    return found


async def test_row_has_the_training_format_and_what_the_model_answered(
    start: Start, tmp_path: Path, counts: Counts
) -> None:
    collector, pipeline = start()
    (answer,) = await outcomes(pipeline, message("w1 w2"))
    await collector.close()
    (row,) = rows(tmp_path)
    meta = row.pop("_collected")
    assert row == {"text": "w1 w2", "topic": None, "sentiment": None}
    assert isinstance(answer, Result)
    topic = answer.output.probabilities[0]
    assert meta["predictions"]["topic"] == {"label": "a", "confidence": pytest.approx(float(topic[0]), rel=1e-6)}
    assert meta["predictions"]["sentiment"]["label"] == "positive"
    assert meta["reasons"] == ["random"]
    assert meta["probability"] == 1.0
    assert meta["fingerprints"] == {"embedding_space": "e" * 16, "heads": {"topic": "t" * 16, "sentiment": "s" * 16}}
    assert meta["model"].startswith("fake")
    assert {"novelty", "prompt", "redacted"}.isdisjoint(meta)
    assert counts.collected == {"random": 1}


async def test_prompt_is_named_and_not_part_of_the_text(start: Start, tmp_path: Path) -> None:
    collector, pipeline = start()
    await outcomes(pipeline, message("w1", options=RequestOptions(prompt="query")))
    await collector.close()
    (row,) = rows(tmp_path)
    assert (row["text"], row["_collected"]["prompt"]) == ("w1", "query")


async def test_texts_without_an_answer_of_a_head_are_not_collected(start: Start, tmp_path: Path) -> None:
    collector, pipeline = start()
    await outcomes(pipeline, message("w1", options=RequestOptions(tasks=frozenset({Task.EMBEDDING}))))
    invalid = InvalidItem("x", InvalidRequestError("TEXT_NOT_UTF8", "no"))
    await outcomes(pipeline, Message((invalid, Item("y", "w2")), RequestOptions()))
    await collector.close()
    assert [row["text"] for row in rows(tmp_path)] == ["w2"]


async def test_each_model_has_a_sampler_which_does_not_keep_it(model: Model, tmp_path: Path, counts: Counts) -> None:
    collector = Collector(RowFiles(tmp_path / "rows", 2**20, 1), None, 0.01, counts)
    other = dataclasses.replace(model)
    assert collector.sampler(model) is collector.sampler(model)
    assert collector.sampler(model) is not collector.sampler(other)
    collector.observe(other, message("w1"), [])
    reference = weakref.ref(other)
    del other
    gc.collect()
    assert reference() is None
    await collector.close()


async def test_texts_that_find_no_room_are_dropped_and_answered(start: Start, tmp_path: Path, counts: Counts) -> None:
    files = Held(tmp_path / "rows")
    collector, pipeline = start(files)
    await outcomes(pipeline, message("w0"))
    assert files.entered.wait(30)
    waiting = module._MAX_WAITING_TEXTS
    answers = [one for _ in range(8) for one in await outcomes(pipeline, message(*["w1"] * 100))]
    assert all(isinstance(one, Result) for one in answers)
    assert counts.uncollected == {"queue_full": 800 - waiting}
    files.released.set()
    await collector.close()
    assert len(rows(tmp_path)) == 1 + waiting


async def test_long_text_is_dropped(start: Start, tmp_path: Path, counts: Counts) -> None:
    collector, pipeline = start()
    await outcomes(pipeline, message("w1 " * module.MAX_TEXT_CHARACTERS, "w2"))
    await collector.close()
    assert [row["text"] for row in rows(tmp_path)] == ["w2"]
    assert counts.uncollected == {"text_too_long": 1}


async def test_full_disk_stops_collecting_for_a_while_and_answers_go_on(
    start: Start, tmp_path: Path, counts: Counts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SimpleNamespace(now=0.0)
    collector, pipeline = start(clock=lambda: clock.now)

    async def send(text: str) -> None:
        counts.counted.clear()
        (answer,) = await outcomes(pipeline, message(text))
        assert isinstance(answer, Result)
        # What becomes of a text is counted last.
        assert counts.counted.wait(30)

    await send("w1")
    with monkeypatch.context() as patch:

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "write", full)
        await send("w2")
    await send("w3")
    clock.now = 1000.0
    await send("w4")
    await collector.close()
    assert [row["text"] for row in rows(tmp_path)] == ["w1", "w4"]
    assert counts.uncollected == {"write_failed": 2}
    assert not counts.stopped
    assert [record.levelname for record in caplog.records if "cannot be collected" in record.message] == ["ERROR"]


async def test_unexpected_error_ends_collecting_and_not_the_answers(
    start: Start, counts: Counts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    collector, pipeline = start()

    def fail(*_: object) -> bytes:
        raise RuntimeError("a defect")

    monkeypatch.setattr(rows_module, "encode", fail)
    answers = await outcomes(pipeline, message("w1", "w2", "w3"))
    assert all(isinstance(one, Result) for one in answers)
    await collector.close()
    assert counts.stopped
    assert counts.uncollected == {"write_failed": 2}
    assert "no more texts are collected" in caplog.text


async def test_text_that_cannot_be_redacted_is_dropped(
    model: Model, settings: Callable[..., Settings], tmp_path: Path, counts: Counts
) -> None:
    (tmp_path / "redact.toml").write_text("word = 'w[0-9]+'\nslow = '(a+)+!'\n")
    values = {"collect": str(tmp_path / "rows"), "collect_redact": str(tmp_path / "redact.toml")}
    collector = Collector.from_settings(settings(**values), counts)
    assert collector
    draw_all(collector, model)
    pipeline = Pipeline(model, settings())
    pipeline.observers = [collector.observe]
    pipeline.start()
    await outcomes(pipeline, message("w1 b", "a" * 60, "w2 c"))
    await pipeline.close()
    await collector.close()
    assert sorted(row["text"] for row in rows(tmp_path)) == ["[word] b", "[word] c"]
    assert [row["_collected"]["redacted"] for row in rows(tmp_path)] == [1, 1]
    assert counts.uncollected == {"redaction_failed": 1}


def test_without_a_folder_nothing_is_collected(settings: Callable[..., Settings], counts: Counts) -> None:
    assert Collector.from_settings(settings(), counts) is None


def test_folder_that_is_a_file_is_refused(settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=r"--collect .*cannot be written to"):
        module.check(settings(collect=str(tmp_path / "file")))


def test_full_disk_does_not_prevent_the_start(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    assert module.check(settings(collect=str(tmp_path))) is None


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"collect": "x", "collect_share": 0.0}, "--collect-share 0 must be above 0"),
        ({"collect": "x", "collect_share": 1.5}, "--collect-share 1.5 must be"),
        ({"collect": "x", "collect_mb": 0}, "--collect-mb 0"),
        ({"collect_redact": "x"}, "--collect-redact requires --collect"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    settings: Callable[..., Settings], values: dict[str, Any], problem: str
) -> None:
    with pytest.raises(StartupError, match=problem):
        settings(**values)

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from polyhead_bulk import EngineError, local
from polyhead_bulk.answers import Answers
from polyhead_bulk.texts import Texts, from_values
from polyhead_server.inference.model import Model
from polyhead_server.inference.postprocessing import pool_windows, postprocess

from tests.support.fake_engine import FakeEngine, Panic

from .conftest import MakeLayout, expected_embeddings, words


def parts(texts: list[str], size: int) -> list[Texts]:
    return [from_values(texts[begin : begin + size], payload=begin) for begin in range(0, len(texts), size)]


def embeddings(answered: list[tuple[Texts, Answers]]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.concatenate([answers.embedding for _, answers in answered if answers.embedding is not None])


@pytest.mark.parametrize("size", [1, 7, 1000, 5000])
@pytest.mark.parametrize("threads", [1, 3])
def test_each_text_gets_its_own_answer_in_order(model: Model, make_layout: MakeLayout, size: int, threads: int) -> None:
    texts = words(3000)
    answered = list(local.answer(model, make_layout(), threads, parts(texts, size)))
    assert [part.payload for part, _ in answered] == list(range(0, 3000, size))
    np.testing.assert_array_equal(embeddings(answered), expected_embeddings(texts))


def test_no_texts_have_no_answers(model: Model, make_layout: MakeLayout) -> None:
    assert list(local.answer(model, make_layout(), 2, [])) == []
    ((part, answers),) = local.answer(model, make_layout(), 2, [Texts([], payload="kept")])
    assert part.payload == "kept"
    assert answers.columns()["error"].to_pylist() == []


def test_small_groups_are_sorted_and_computed_together(
    model: Model, make_layout: MakeLayout, engine: FakeEngine
) -> None:
    list(local.answer(model, make_layout(), 1, parts(words(900), 3)))
    # One text of 9 tokens on average per batch of 256 tokens would be 900 batches, three each 300.
    assert len(engine.batch_shapes) < 60


def test_a_text_that_fails_does_not_fail_its_batch_mates(
    model: Model, make_layout: MakeLayout, engine: FakeEngine
) -> None:
    engine.error = RuntimeError("poisoned")
    texts = words(500)
    texts[123] = "poison"
    ((_, answers),) = local.answer(model, make_layout(), 2, parts(texts, 500))
    assert answers.errors == {123: "the model failed: RuntimeError"}
    others = [row for row in range(500) if row != 123]
    assert answers.embedding is not None
    np.testing.assert_array_equal(answers.embedding[others], expected_embeddings(texts[row] for row in others))


def test_an_engine_that_fails_its_self_test_ends_the_stream(
    model: Model, make_layout: MakeLayout, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise EngineError("golden texts")

    engine.error = RuntimeError("broken")
    monkeypatch.setattr(local, "self_test", broken)
    with pytest.raises(EngineError, match="golden texts"):
        list(local.answer(model, make_layout(), 1, parts(["poison"] * 2000, 10)))


def test_a_run_of_bad_texts_is_survived_by_a_sound_engine(
    model: Model, make_layout: MakeLayout, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = []
    engine.error = RuntimeError("poisoned")
    monkeypatch.setattr(local, "self_test", lambda *_: tested.append(True))
    answered = list(local.answer(model, make_layout(), 1, parts(["poison"] * 3000 + ["w1"], 100)))
    assert tested
    assert sum(len(answers.errors) for _, answers in answered) == 3000
    np.testing.assert_array_equal(embeddings(answered)[-1:], expected_embeddings(["w1"]))


def test_a_panic_of_the_engine_is_raised(model: Model, make_layout: MakeLayout, engine: FakeEngine) -> None:
    engine.error = Panic("panic")
    with pytest.raises(Panic):
        list(local.answer(model, make_layout(), 2, parts(["poison"] * 10, 10)))


def test_an_error_of_the_input_is_raised_after_the_answers_before_it(model: Model, make_layout: MakeLayout) -> None:
    def broken() -> Iterator[Texts]:
        yield from parts(words(2000), 500)
        raise ValueError("unreadable")

    answered: list[object] = []
    with pytest.raises(ValueError, match="unreadable"):
        answered.extend(local.answer(model, make_layout(), 2, broken()))
    assert len(answered) == 4


def test_closing_the_stream_ends_its_threads_and_closes_the_input(model: Model, make_layout: MakeLayout) -> None:
    closed = threading.Event()

    def endless() -> Iterator[Texts]:
        try:
            while True:
                yield from parts(words(1000), 1000)
        finally:
            closed.set()

    before = set(threading.enumerate())
    stream = local.answer(model, make_layout(), 2, endless())
    next(stream)
    running = [thread for thread in set(threading.enumerate()) - before if thread.name == "bulk"]
    assert running
    stream.close()  # type: ignore[attr-defined]
    assert closed.wait(10)
    for thread in running:
        thread.join(10)
        assert not thread.is_alive()


def test_only_a_few_blocks_are_read_ahead(model: Model, make_layout: MakeLayout) -> None:
    read = 0

    def counted() -> Iterator[Texts]:
        nonlocal read
        for part in parts(words(1000), 1000) * 200:
            read += 1
            yield part

    stream = local.answer(model, make_layout(), 1, counted())
    next(stream)
    time.sleep(0.5)
    # Blocks of 2, 3, 5 and 9 thousand texts: one is answered, two are in progress, one waits.
    assert read <= 19
    stream.close()  # type: ignore[attr-defined]


def test_long_texts_are_cut_rejected_or_pooled_as_by_the_server(
    model: Model, make_layout: MakeLayout, engine: FakeEngine
) -> None:
    texts = ["w1 w2", "w5 " * 30, "w7", "w9 " * 17]
    ((_, cut),) = local.answer(model, make_layout(truncation="truncate"), 1, parts(texts, 4))
    assert cut.truncated.tolist() == [False, True, False, True]
    assert cut.tokens.tolist() == [4, 32, 3, 19]
    ((_, rejected),) = local.answer(model, make_layout(truncation="error"), 1, parts(texts, 4))
    assert rejected.errors == {
        1: "the text has 32 tokens; the limit is 16",
        3: "the text has 19 tokens; the limit is 16",
    }
    ((_, pooled),) = local.answer(model, make_layout(truncation="window"), 1, parts(texts, 4))
    assert pooled.errors == {}
    assert not pooled.truncated.any()
    assert pooled.embedding is not None
    for row in (1, 3):
        (tokens,) = model.tokenizer.encode([texts[row]], 32)
        windows = []
        for window in tokens.windows:
            ids = np.array([window])
            windows += postprocess(model.source.manifest.heads, engine.run(ids, np.ones_like(ids)))
        lengths = [len(window) for window in tokens.windows]
        expected = pool_windows(
            model.source.manifest.heads, [one for one in windows if one is not None], lengths, normalized=False
        )
        assert expected is not None
        np.testing.assert_allclose(pooled.embedding[row], expected.embedding, rtol=1e-6)
        np.testing.assert_allclose(pooled.probabilities[0][row], expected.probabilities[0], rtol=1e-6)
    np.testing.assert_array_equal(pooled.embedding[[0, 2]], expected_embeddings([texts[0], texts[2]]))

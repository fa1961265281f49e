"""The candidate's answers and their comparison, with a fake engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_server.candidate.samples import Sample, Totals, values_of
from polyhead_server.candidate.shadow import MAX_BATCH_ITEMS, ShadowWork
from polyhead_server.engines.collate import pad
from polyhead_server.inference.model import Model
from polyhead_server.inference.postprocessing import postprocess

from tests.support.fake_engine import FakeEngine

DIGEST = "d" * 64


def samples(
    model: Model, texts: Sequence[str], digest: str = DIGEST, prompt: str = "", windows: int = 1
) -> list[tuple[Sample, Totals]]:
    """Returns texts with the answers of the fake engine, as one sender sends them."""
    made = []
    for number, text in enumerate(texts, 1):
        (tokens,) = model.tokenizer.encode([text])
        outputs = FakeEngine().run(*pad(list(tokens.windows), 0))
        (output,) = postprocess(model.source.manifest.heads, outputs)
        assert output
        sample = Sample(bytes.fromhex(digest), text, prompt, windows, 9, 10**7, 2, values_of(output))
        made.append((sample, Totals(1, 2 * number, number, 3)))
    return made


@pytest.fixture
def work(model: Model) -> ShadowWork:
    return ShadowWork(model, model.source.manifest, DIGEST, keep_texts=10)


def test_equal_models_agree(work: ShadowWork, model: Model) -> None:
    texts = [f"w{number} w{number + 1}" for number in range(50)]
    work.add(samples(model, texts))
    report = work.report()
    assert (report.answered, report.selected, report.dropped, report.compared) == (100, 50, 3, 50)
    assert [head.changed for head in report.heads] == [0, 0]
    assert report.embedding.space == "same"
    assert report.embedding.least == pytest.approx(1)
    assert report.served.texts == report.candidate.texts == 50
    assert report.served.mean == pytest.approx(0.005)


def test_changed_head_is_seen(model: Model) -> None:
    manifest = model.source.manifest
    heads = (manifest.heads[0], replace(manifest.heads[1], threshold=0.99))
    other = replace(model, source=bundle.Bundle(Path("new"), replace(manifest, heads=heads), "f" * 64))
    work = ShadowWork(other, manifest, DIGEST, keep_texts=1)
    work.add(samples(model, ["w1", "w150 w150 w150 w150"]))
    topic, sentiment = work.report().heads
    assert (topic.changed, sentiment.changed) == (0, 1)
    assert sentiment.cells == ((1, 0, 1), (1, 1, 1))
    assert [(one.text, one.served, one.candidate) for one in sentiment.examples] == [("w1", "positive", "negative")]


def test_batches_are_bounded(work: ShadowWork, model: Model, engine: FakeEngine) -> None:
    work.add(samples(model, ["w1"] * 40 + ["w1 " * 12] * 40))
    assert all(items <= MAX_BATCH_ITEMS and items * length <= 256 for items, length in engine.batch_shapes)
    assert sum(items for items, _ in engine.batch_shapes) == 80
    assert work.report().compared == 80


def test_answers_of_another_model_are_counted_and_not_compared(work: ShadowWork, model: Model) -> None:
    work.add(samples(model, ["w1", "w2"], digest="e" * 64))
    assert (work.report().other_model, work.report().compared) == (2, 0)


def test_unknown_prompt_is_an_error_of_the_candidate(model: Model) -> None:
    manifest = replace(model.source.manifest, prompts={})
    other = replace(model, source=bundle.Bundle(Path("new"), manifest, "f" * 64))
    work = ShadowWork(other, model.source.manifest, DIGEST, keep_texts=0)
    work.add(samples(model, ["w1"], prompt="query"))
    assert work.report().errors == {"UNKNOWN_PROMPT": 1}


def test_prompt_stands_before_the_text(work: ShadowWork, model: Model, engine: FakeEngine) -> None:
    work.add(samples(model, ["w1"], prompt="query"))
    assert engine.batch_shapes == [(1, 4)]


def test_one_bad_text_fails_alone(work: ShadowWork, model: Model, engine: FakeEngine) -> None:
    made = samples(model, ["w1", "w2 poison", "w3"])
    engine.error = RuntimeError("the text is poison")
    work.add(made)
    report = work.report()
    assert (report.compared, report.errors) == (2, {"INTERNAL": 1})


def test_output_that_is_not_finite_is_an_error(work: ShadowWork, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples(model, ["w1"])
    nan = [np.full((1, size), np.nan, np.float32) for size in (2, 3, 1)]
    monkeypatch.setattr(FakeEngine, "run", lambda *_: nan)
    work.add(made)
    assert work.report().errors == {"INTERNAL": 1}


def test_windows_of_a_long_text_are_pooled(work: ShadowWork, model: Model, engine: FakeEngine) -> None:
    work.add(samples(model, ["w1 " * 30], windows=4))
    assert work.report().compared == 1
    assert engine.batch_shapes[0][0] > 1


def test_numbers_of_another_size_are_an_error(work: ShadowWork, model: Model) -> None:
    ((sample, totals),) = samples(model, ["w1"])
    work.add([(sample._replace(values=b"1234"), totals)])
    assert work.report().errors == {"INTERNAL": 1}


def test_totals_of_several_senders_add_up(work: ShadowWork, model: Model) -> None:
    ((sample, _),) = samples(model, ["w1"])
    work.add([(sample, Totals(1, 5, 3, 1)), (sample, Totals(1, 9, 4, 2)), (sample, Totals(2, 10, 10, 0))])
    report = work.report()
    assert (report.answered, report.selected, report.dropped) == (19, 14, 2)


def test_candidate_of_another_size_says_so(model: Model) -> None:
    manifest = replace(model.source.manifest, embedding=replace(model.source.manifest.embedding, dimensions=3))
    work = ShadowWork(model, manifest, DIGEST, keep_texts=0)
    assert work.report().embedding.space == "other size"

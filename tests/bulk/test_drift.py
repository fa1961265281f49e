"""The comparison of a bulk job's output with the validation texts of its bundle, for both formats."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from polyhead_bulk.drift import compare_output
from polyhead_bulk.manifest import NAME
from polyhead_client.cli.failure import CommandError
from polyhead_client.cli.main import main

from tests.support import small_bundle
from tests.support.drift_reference import EVERY_KIND

ROWS = 480
Write = Callable[..., Path]


@pytest.fixture
def source(tmp_path: Path) -> bundle.Bundle:
    return small_bundle.write_demo_bundle(
        tmp_path / "bundle", dataclasses.replace(small_bundle.EVERY_KIND, reference=EVERY_KIND)
    )


def usual(rng: np.random.Generator) -> dict[str, Any]:
    """Returns the answers to a text like those of validation."""
    topic = int(rng.choice(3, p=(0.5, 0.25, 0.25)))
    scores = np.full(3, 0.2)
    scores[topic] = 0.6
    positive = float(rng.random())
    stars = np.full(5, 0.1)
    stars[rng.integers(5)] = 0.6
    return {
        "embedding": rng.normal((100, 5), (50, 2)).astype(np.float32).tolist(),
        "topic_label": "app",
        "topic_probabilities": scores.tolist(),
        "sentiment_probabilities": [1 - positive, positive],
        "tags_labels": [],
        "tags_probabilities": [float(rng.random() < 0.25), float(rng.random() < 0.5), float(rng.random() < 0.1)],
        "stars_probabilities": stars.tolist(),
        "price_value": float(rng.choice((5.0, 50.0))),
        "truncated": False,
        "tokens": int(rng.choice((3, 7, 12), p=(0.25, 0.5, 0.25))),
        "error": None,
    }


@pytest.fixture
def write(tmp_path: Path, source: bundle.Bundle) -> Write:
    """Writes the output of a job in two parts: ``write(rows, output_format)``."""

    def run(rows: list[dict[str, Any]], output_format: str = "parquet", **model: str) -> Path:
        output = tmp_path / "out"
        output.mkdir()
        half = len(rows) // 2
        parts = []
        for number, part in enumerate((rows[:half], rows[half:])):
            name = f"part-00000-{number:05d}.{output_format}"
            if output_format == "parquet":
                pq.write_table(pa.Table.from_pylist(part), output / name)
            else:
                (output / name).write_text("".join(json.dumps(row) + "\n" for row in part))
            parts.append({"name": name, "source": 0, "fragment": number, "rows": len(part)})
        job = {
            "model": {"model_id": source.model_id, **model},
            "output": {"format": output_format},
            "rows": len(rows),
            # The order of the list is of no importance.
            "parts": parts[::-1],
        }
        (output / NAME).write_text(json.dumps(job))
        return output

    return run


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_texts_like_those_of_validation_have_not_drifted(
    write: Write, source: bundle.Bundle, output_format: str
) -> None:
    rng = np.random.default_rng(0)
    rows = [usual(rng) for _ in range(ROWS)]
    failed = dict.fromkeys(rows[0], None) | {"error": "it is too long"}
    report = compare_output(write([*rows, failed], output_format), source.path, 0.1)
    assert (report.texts, report.reference_texts, report.window_s) == (ROWS, 400, 0)
    titles = [measure.title for measure in report.measures]
    assert titles == [
        *("topic answers", "topic confidence", "sentiment answers", "sentiment confidence", "tags answers"),
        *("stars answers", "stars confidence", "price answers", "tokens", "truncated", "embedding"),
    ]
    # The usual texts are sure of their topics and sentiments in other ways than those of the reference.
    assert not [measure.title for measure in report.drifted if "confidence" not in measure.title]
    assert report.is_tested


def test_drift_is_that_of_the_head_whose_answers_changed(write: Write, source: bundle.Bundle) -> None:
    rng = np.random.default_rng(1)
    rows = [usual(rng) | {"price_value": 500.0} for _ in range(ROWS)]
    output = write(rows)
    report = compare_output(output, source.path, 0.1)
    found = {measure.title: measure for measure in report.measures}
    assert found["price answers"].drifted
    assert found["price answers"].bins[1].observed == 1
    assert not found["topic answers"].drifted
    assert not compare_output(output, source.path, 0.9).drifted
    done = CliRunner().invoke(main, ["drift", str(output), "--bundle", str(source.path)])
    assert done.exit_code == 1
    assert "price answers" in done.stdout.splitlines()[1]


def test_shortened_or_encoded_embeddings_are_not_compared(write: Write, source: bundle.Bundle) -> None:
    rng = np.random.default_rng(2)
    rows = [usual(rng) | {"embedding": [1.0]} for _ in range(ROWS)]
    assert "embedding" not in [measure.name for measure in compare_output(write(rows), source.path, 0.1).measures]


def test_kept_columns_of_the_input_are_not_read(write: Write, source: bundle.Bundle) -> None:
    rng = np.random.default_rng(4)
    rows = [{"order_value": [number, "unknown"][number % 2], **usual(rng)} for number in range(ROWS)]
    assert compare_output(write(rows, "jsonl"), source.path, 0.1).texts == ROWS


def test_answers_of_one_head_alone_are_compared(write: Write, source: bundle.Bundle) -> None:
    rng = np.random.default_rng(3)
    kept = ("topic_probabilities", "truncated", "tokens", "error")
    rows = [{name: value for name, value in usual(rng).items() if name in kept} for _ in range(ROWS)]
    report = compare_output(write(rows), source.path, 0.1)
    assert {measure.head for measure in report.measures} == {"topic", ""}


def test_job_without_answers_tells_nothing(write: Write, source: bundle.Bundle) -> None:
    rows = [{"truncated": None, "tokens": None, "error": "it is too long"}] * 30
    report = compare_output(write(rows), source.path, 0.1)
    assert (report.texts, report.measures, report.is_tested) == (0, (), False)


def test_output_of_another_bundle_is_refused(write: Write, source: bundle.Bundle) -> None:
    output = write([usual(np.random.default_rng(0))] * 2, model_id="other-1")
    with pytest.raises(CommandError, match=f"was written with other-1, not {source.model_id}") as caught:
        compare_output(output, source.path, 0.1)
    assert caught.value.exit_code == 2


def test_bundle_without_a_reference_is_refused(write: Write, tmp_path: Path) -> None:
    plain = small_bundle.write_demo_bundle(tmp_path / "plain")
    with pytest.raises(CommandError, match="has no reference"):
        compare_output(write([], model_id=plain.model_id), plain.path, 0.1)


@pytest.mark.parametrize("content", [None, "{}", "[]", "not JSON"])
def test_folder_of_anything_else_is_refused(tmp_path: Path, source: bundle.Bundle, content: str | None) -> None:
    if content is not None:
        (tmp_path / NAME).write_text(content)
    with pytest.raises(CommandError, match="polyhead bulk"):
        compare_output(tmp_path, source.path, 0.1)


def test_damaged_bundle_is_reported(write: Write, source: bundle.Bundle) -> None:
    output = write([usual(np.random.default_rng(0))] * 2)
    (source.path / "model.onnx").write_bytes(b"other")
    with pytest.raises(CommandError, match=r"model\.onnx"):
        compare_output(output, source.path, 0.1)

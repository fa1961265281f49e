"""A SetFit model is imported with its head; its pickle is never read."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from polyhead_export.interop import setfit
from polyhead_export.interop.checkpoint import CheckpointError
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier

from tests.support.checkpoints import (
    TEXTS,
    assert_same_embeddings,
    edit_json,
    import_run,
    run_model,
    write_sentence_transformer,
)


def write_setfit(
    folder: Path,
    labels: list[str] | None,
    classes: int = 3,
    *,
    convert: bool = True,
    modules: Sequence[Any] = (Normalize(),),
) -> Path:
    """Writes a SetFit model as setfit does: a SentenceTransformer, its settings, and a pickled logistic regression."""
    checkpoint = write_sentence_transformer(folder, "bert", *modules)
    settings = {"labels": labels, "normalize_embeddings": False}
    (checkpoint / setfit.CONFIG).write_text(json.dumps(settings))
    random = np.random.default_rng(0)
    head = LogisticRegression().fit(random.normal(size=(60, 32)), np.arange(60) % classes)
    joblib.dump(head, checkpoint / setfit.PICKLE)
    if convert:
        run_conversion(checkpoint)
    return checkpoint


def run_conversion(checkpoint: Path) -> None:
    """Runs the program of the command that the error shows."""
    program = setfit.CONVERSION.partition('"')[2].rpartition('"')[0]
    with contextlib.chdir(checkpoint):
        exec(program, {})  # noqa: S102


@pytest.mark.parametrize(("classes", "labels"), [(2, ["bad", "good"]), (3, ["app", "billing", "support"]), (3, None)])
def test_setfit_model_keeps_its_probabilities(tmp_path: Path, classes: int, labels: list[str] | None) -> None:
    checkpoint = write_setfit(tmp_path, labels, classes)
    run = import_run(checkpoint)
    head = joblib.load(checkpoint / setfit.PICKLE)
    assert_same_embeddings(checkpoint, run)
    outputs = run_model(run, TEXTS)
    (logits,) = outputs.logits.values()
    expected = head.predict_proba(outputs.sentence_embedding.numpy())
    found = torch.sigmoid(logits) if classes == 2 else torch.softmax(logits, dim=-1)
    np.testing.assert_allclose(found.numpy()[:, -1], expected[:, -1], atol=1e-5)
    assert run.heads[0]["kind"] == ("sigmoid" if classes == 2 else "softmax")
    assert list(run.heads[0]["labels"]) == (labels or ["0", "1", "2"])


def test_classes_that_are_labels_keep_their_order(tmp_path: Path) -> None:
    checkpoint = write_setfit(tmp_path, ["positive", "negative", "neutral"], convert=False)
    random = np.random.default_rng(0)
    classes = np.array(["negative", "neutral", "positive"])
    head = LogisticRegression().fit(random.normal(size=(60, 32)), classes[np.arange(60) % 3])
    joblib.dump(head, checkpoint / setfit.PICKLE)
    run_conversion(checkpoint)
    assert list(import_run(checkpoint).heads[0]["labels"]) == ["negative", "neutral", "positive"]


@pytest.mark.parametrize("kind", [OneVsRestClassifier, MultiOutputClassifier])
def test_head_of_several_labels_per_text_becomes_multilabel(tmp_path: Path, kind: Any) -> None:
    checkpoint = write_setfit(tmp_path, ["late", "rude"], convert=False)
    random = np.random.default_rng(0)
    head = kind(LogisticRegression()).fit(random.normal(size=(60, 32)), random.integers(0, 2, size=(60, 2)))
    joblib.dump(head, checkpoint / setfit.PICKLE)
    run_conversion(checkpoint)
    run = import_run(checkpoint)
    assert (run.heads[0]["kind"], list(run.heads[0]["labels"])) == ("multilabel", ["late", "rude"])
    outputs = run_model(run, TEXTS)
    (logits,) = outputs.logits.values()
    expected = head.predict_proba(outputs.sentence_embedding.numpy())
    if isinstance(expected, list):
        expected = np.stack([one[:, 1] for one in expected], axis=1)
    np.testing.assert_allclose(torch.sigmoid(logits).numpy(), expected, atol=1e-5)


def test_head_of_scaled_embeddings_reads_them_scaled(tmp_path: Path) -> None:
    checkpoint = write_setfit(tmp_path, None, modules=())
    edit_json(checkpoint / setfit.CONFIG, normalize_embeddings=True)
    run = import_run(checkpoint)
    outputs = run_model(run, TEXTS)
    embeddings = SentenceTransformer(str(checkpoint), device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(outputs.sentence_embedding.numpy(), embeddings, atol=1e-5)
    (logits,) = outputs.logits.values()
    expected = joblib.load(checkpoint / setfit.PICKLE).predict_proba(embeddings)
    np.testing.assert_allclose(torch.softmax(logits, dim=-1).numpy(), expected, atol=1e-5)


def test_command_of_the_error_converts_the_head(tmp_path: Path) -> None:
    checkpoint = write_setfit(tmp_path, None)
    expected = (checkpoint / setfit.HEAD).read_bytes()
    (checkpoint / setfit.HEAD).unlink()
    command = setfit.CONVERSION.replace("python", sys.executable, 1)
    subprocess.run(["sh", "-c", command], check=True, cwd=checkpoint)
    assert (checkpoint / setfit.HEAD).read_bytes() == expected


def test_pickled_head_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)pickle model_head\.pkl, which is never read; .*joblib\.load"):
        import_run(write_setfit(tmp_path, None, convert=False))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"coef": np.zeros((3, 32)), "intercept": np.zeros(3), "classes": None}, r"lacks coef, intercept or classes"),
        ({"coef": np.zeros((3, 32)), "intercept": np.zeros(3), "classes": ["a", "b"]}, r"coef \(3, 32\) .* 2 classes"),
        ({"coef": np.zeros((3, 9)), "intercept": np.zeros(3), "classes": list("012")}, "has 9 coefficients"),
        (
            {"coef": np.zeros((4, 32)), "intercept": np.zeros(4), "classes": list("abcd")},
            "names 3 labels, the head has 4",
        ),
        (
            {"coef": np.zeros((3, 32)), "intercept": np.zeros(3), "classes": ["app", "bill", "support"]},
            "names the labels app, billing, support, the head has the classes app, bill, support",
        ),
    ],
)
def test_head_that_does_not_fit_is_rejected(tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    checkpoint = write_setfit(tmp_path, ["app", "billing", "support"], convert=False)
    classes = values.pop("classes")
    metadata = {"classes": json.dumps(classes)} if classes else {}
    tensors = {name: array.astype(np.float32) for name, array in values.items()}
    save_file(tensors, checkpoint / setfit.HEAD, metadata)
    with pytest.raises(CheckpointError, match=reason):
        import_run(checkpoint)

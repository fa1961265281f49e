from __future__ import annotations

import numpy as np
import pytest
from polyhead_training.evaluation.encodings import Form, encode, forms

VECTORS = np.random.default_rng(0).normal(size=(20, 24)).astype(np.float32)


def test_forms_are_the_dimensions_of_the_configuration_and_the_whole() -> None:
    assert list(dict.fromkeys(form.dimensions for form in forms(384, (64, 384, 128)))) == [384, 128, 64]
    assert list(dict.fromkeys(form.dimensions for form in forms(384, ()))) == [384, 256, 128, 64]
    assert list(dict.fromkeys(form.dimensions for form in forms(32, ()))) == [32]
    assert next(forms(32, ())) == Form(32, "float32")


def test_float_is_cut_and_scaled_to_length_1() -> None:
    found = encode(VECTORS, Form(8, "float32"))
    assert found.shape == (20, 8)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(20))
    assert found[3] == pytest.approx(VECTORS[3, :8] / np.linalg.norm(VECTORS[3, :8]))


def test_int8_has_at_most_255_steps_and_keeps_the_cosines() -> None:
    found = encode(VECTORS, Form(24, "int8"))
    steps = VECTORS[5] / np.abs(VECTORS[5]).max() * 127
    assert found[5] * 127 / np.abs(found[5]).max() == pytest.approx(np.rint(steps), abs=1e-4)
    whole = encode(VECTORS, Form(24, "float32"))
    assert found @ found.T == pytest.approx(whole @ whole.T, abs=0.02)


def test_cosine_of_binary_is_that_of_the_hamming_distance() -> None:
    found = encode(VECTORS, Form(24, "binary"))
    distance = int(np.count_nonzero((VECTORS[0] > 0) != (VECTORS[1] > 0)))
    assert float(found[0] @ found[1]) == pytest.approx(1 - 2 * distance / 24)


def test_zero_vectors_have_no_direction() -> None:
    for encoding in ("float32", "int8"):
        assert not encode(np.zeros((1, 4), dtype=np.float32), Form(4, encoding)).any()

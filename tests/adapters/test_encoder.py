"""``encode()`` as in sentence-transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from polyhead_adapters.encoder import PolyheadEncoder
from polyhead_client import ItemFailedError

from tests.support.fake_server import ERROR, FakeServicer, embedding_of


def test_list_gives_a_matrix_and_a_str_a_vector(servicer: FakeServicer) -> None:
    with PolyheadEncoder(servicer.target) as encoder:
        matrix = encoder.encode(["one", "two"], batch_size=1)
        assert matrix.dtype == np.float32
        assert matrix.shape == (2, 3)
        np.testing.assert_array_equal(encoder.encode("two"), matrix[1])
        np.testing.assert_array_equal(matrix[1], np.array(embedding_of("two"), np.float32))
        assert len(servicer.calls) == 2


def test_arrays_and_empty_lists(servicer: FakeServicer) -> None:
    with PolyheadEncoder(servicer.target, dimensions=2) as encoder:
        assert encoder.encode(np.array(["one", "two"], dtype=object)).shape == (2, 2)  # type: ignore[arg-type]
        assert encoder.encode([]).shape == (0, 2)
        assert encoder.encode([], normalize_embeddings=True).shape == (0, 2)
        assert encoder.get_sentence_embedding_dimension() == 2


def test_prompt_name_is_that_of_the_model(servicer: FakeServicer) -> None:
    with PolyheadEncoder(servicer.target, prompt="passage") as encoder:
        encoder.encode("one")
        encoder.encode(["one"], prompt_name="query")
    assert [request.options.prompt for request in servicer.requests] == ["passage", "query"]


def test_normalization(servicer: FakeServicer) -> None:
    with PolyheadEncoder(servicer.target) as encoder:
        raw = encoder.encode(["one", "\0\0\0"])
        unit = encoder.encode(["one", "\0\0\0"], normalize_embeddings=True)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit[0], raw[0] / np.linalg.norm(raw[0]), rtol=1e-6)
    np.testing.assert_array_equal(unit[1], [0, 0, 0])


def test_progress_bar(servicer: FakeServicer, capsys: pytest.CaptureFixture[str]) -> None:
    with PolyheadEncoder(servicer.target) as encoder:
        quiet = encoder.encode(["one", "two"], show_progress_bar=False)
        assert capsys.readouterr().out == ""
        shown = encoder.encode(["one", "two"], show_progress_bar=True)
    assert "100%" in capsys.readouterr().out
    np.testing.assert_array_equal(quiet, shown)


@pytest.mark.parametrize("options", [{"convert_to_numpy": False}, {"convert_to_tensor": True}])
def test_other_results_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"torch\.from_numpy"), PolyheadEncoder() as encoder:
        encoder.encode(["one"], **options)


def test_error_of_a_text(servicer: FakeServicer) -> None:
    with pytest.raises(ItemFailedError, match="item '1'"), PolyheadEncoder(servicer.target) as encoder:
        encoder.encode(["one", ERROR])

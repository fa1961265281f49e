from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from polyhead_export import bundle
from polyhead_export.passes import torch_pass
from polyhead_server.engines.pytorch import TorchEngine, graph_shape, padded
from polyhead_server.loading import pad
from polyhead_training.model import load_model

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    ("rows", "width", "expected"),
    [
        (1, 3, (1, 16)),
        (2, 16, (2, 16)),
        (3, 17, (3, 32)),
        (7, 64, (7, 64)),
        (9, 64, (10, 64)),
        (13, 100, (14, 112)),
        (17, 30, (20, 32)),
        (4, 250, (4, 250)),
        (128, 64, (128, 64)),
        (129, 64, None),
        (1024, 32, None),
    ],
)
def test_small_pass_fits_in_a_graph(rows: int, width: int, expected: tuple[int, int] | None) -> None:
    assert graph_shape(rows, width, max_tokens=250) == expected


def test_at_most_a_fifth_of_the_rows_is_padding() -> None:
    for rows in range(1, 513):
        shape = graph_shape(rows, 16, 256)
        assert shape
        assert rows <= shape[0] <= rows * 1.25
    assert len({graph_shape(rows, 16, 256) for rows in range(1, 513)}) == 32


def test_padding_is_masked_and_each_row_has_a_token() -> None:
    inputs = np.array([[[7, 8, 9]], [[1, 1, 0]]])
    ids, mask = padded(inputs, 2, 4)
    assert ids.tolist() == [[7, 8, 9, 0], [0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]


def _rows(engine_outputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(engine_outputs, axis=1)


@pytest.mark.model
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])
def test_answers_are_those_of_the_model_alone_and_in_any_batch(device: str, demo_bundle: Path) -> None:
    source = bundle.load(demo_bundle)
    engine = TorchEngine(source, "fp32", device)
    reference = torch_pass(load_model(demo_bundle / "torch"))
    names = [source.manifest.embedding.output, *(head.output for head in source.manifest.heads)]
    texts = [list(range(1000, 1000 + length)) for length in (1, 5, 16, 17, 40, 250)]
    expected = np.concatenate([_rows([reference(*pad([ids], 0))[name] for name in names]) for ids in texts])
    # Each shape twice: at its first pass a graph is captured.
    for _ in range(2):
        alone = np.concatenate([_rows(engine.run(*pad([ids], 0))) for ids in texts])
        np.testing.assert_allclose(alone, expected, atol=1e-4)
        np.testing.assert_allclose(_rows(engine.run(*pad(texts, 0))), expected, atol=1e-4)
        np.testing.assert_allclose(_rows(engine.run(*pad(texts * 3, 0))), np.tile(expected, (3, 1)), atol=1e-4)


@cuda
@pytest.mark.model
def test_threads_share_a_gpu_and_mix_up_nothing(demo_bundle: Path) -> None:
    engine = TorchEngine(bundle.load(demo_bundle), "fp32", "cuda")
    texts = [list(range(1000 + start, 1000 + start + 1 + start % 60)) for start in range(200)]
    alone = [_rows(engine.run(*pad([ids], 0))) for ids in texts]
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(lambda ids: _rows(engine.run(*pad([ids], 0))), texts * 3)
        for found, right in zip(together, alone * 3, strict=True):
            np.testing.assert_array_equal(found, right)


@cuda
@pytest.mark.model
def test_half_precision_stays_near(demo_bundle: Path) -> None:
    source = bundle.load(demo_bundle)
    ids, mask = pad([list(range(1000, 1040))], 0)
    fp32, fp16 = (_rows(TorchEngine(source, name, "cuda").run(ids, mask)) for name in ("fp32", "fp16"))
    np.testing.assert_allclose(fp16, fp32, atol=0.05)

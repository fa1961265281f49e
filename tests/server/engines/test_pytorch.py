from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle
import pytest
import torch
from numpy.typing import NDArray
from polyhead_export.runners import torch_runner
from polyhead_server.engines import EngineError
from polyhead_server.engines.collate import pad
from polyhead_server.engines.pytorch import TorchEngine, graph_shape, pad_to_shape
from polyhead_training.model import PolyheadModel, load_model
from torch import Tensor

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
def test_small_batch_fits_in_a_graph(rows: int, width: int, expected: tuple[int, int] | None) -> None:
    assert graph_shape(rows, width, max_tokens=250) == expected


def test_at_most_a_fifth_of_the_rows_is_padding() -> None:
    for rows in range(1, 513):
        shape = graph_shape(rows, 16, 256)
        assert shape
        assert rows <= shape[0] <= rows * 1.25
    assert len({graph_shape(rows, 16, 256) for rows in range(1, 513)}) == 32


def test_padding_is_masked_and_each_row_has_a_token() -> None:
    inputs = np.array([[[7, 8, 9]], [[1, 1, 0]]])
    ids, mask = pad_to_shape(inputs, 2, 4)
    assert ids.tolist() == [[7, 8, 9, 0], [0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]


def _rows(engine_outputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(engine_outputs, axis=1)


@pytest.mark.model
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])
def test_answers_equal_the_models_for_single_texts_and_any_batch(device: str, demo_bundle: Path) -> None:
    source = bundle.load(demo_bundle)
    engine = TorchEngine(source, "fp32", device)
    reference = torch_runner(load_model(demo_bundle / "torch"))
    names = [source.manifest.embedding.output, *(head.output for head in source.manifest.heads)]
    texts = [list(range(1000, 1000 + length)) for length in (1, 5, 16, 17, 40, 250)]
    expected = np.concatenate([_rows([reference(*pad([ids], 0))[name] for name in names]) for ids in texts])
    # Each shape twice: the first run captures a graph.
    for _ in range(2):
        single = np.concatenate([_rows(engine.run(*pad([ids], 0))) for ids in texts])
        np.testing.assert_allclose(single, expected, atol=1e-4)
        np.testing.assert_allclose(_rows(engine.run(*pad(texts, 0))), expected, atol=1e-4)
        np.testing.assert_allclose(_rows(engine.run(*pad(texts * 3, 0))), np.tile(expected, (3, 1)), atol=1e-4)


@pytest.mark.model
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])
def test_closed_engine_frees_its_model(device: str, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[weakref.ref[PolyheadModel]] = []

    def load(folder: Path) -> PolyheadModel:
        model = load_model(folder)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr("polyhead_server.engines.pytorch.load_model", load)
    engine = TorchEngine(bundle.load(demo_bundle), "fp32", device)
    engine.run(*pad([[1000]], 0))
    engine.close()
    gc.collect()
    assert [model() for model in models] == [None]
    with pytest.raises(EngineError, match="closed"):
        engine.run(*pad([[1000]], 0))


@cuda
@pytest.mark.model
def test_threads_share_a_gpu_and_get_their_own_answers(demo_bundle: Path) -> None:
    engine = TorchEngine(bundle.load(demo_bundle), "fp32", "cuda")
    texts = [list(range(1000 + start, 1000 + start + 1 + start % 60)) for start in range(200)]
    single = [_rows(engine.run(*pad([ids], 0))) for ids in texts]
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(lambda ids: _rows(engine.run(*pad([ids], 0))), texts * 3)
        for found, right in zip(together, single * 3, strict=True):
            np.testing.assert_array_equal(found, right)


@cuda
@pytest.mark.model
def test_half_precision_stays_close_to_single_precision(demo_bundle: Path) -> None:
    source = bundle.load(demo_bundle)
    ids, mask = pad([list(range(1000, 1040))], 0)
    fp32, fp16 = (_rows(TorchEngine(source, name, "cuda").run(ids, mask)) for name in ("fp32", "fp16"))
    np.testing.assert_allclose(fp16, fp32, atol=0.05)


def _batches(longest: int) -> list[list[list[int]]]:
    """Makes two batches of each shape up to 4 texts."""
    shapes = [(rows, length) for rows in range(1, 5) for length in range(16, longest + 1, 16)]
    return [[list(range(1000 + rows, 1000 + rows + length))] * rows for rows, length in shapes * 2]


def _answers(engine: TorchEngine, batches: Sequence[list[list[int]]]) -> list[NDArray[np.float32]]:
    return [_rows(engine.run(*pad(batch, 0))) for batch in batches]


@cuda
@pytest.mark.model
@pytest.mark.parametrize("why", ["no memory", "waits for the GPU"])
def test_shape_that_cannot_be_captured_is_launched_and_disturbs_no_other(
    why: str, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bundle.load(demo_bundle)
    engine, other, single = (TorchEngine(source, "fp32", "cuda") for _ in range(3))
    runner = engine.cuda
    assert runner
    forward = runner.forward

    def fails(inputs: Tensor) -> list[Tensor]:
        outputs = forward(inputs)
        if inputs.shape[1:] == (2, 32) and torch.cuda.is_current_stream_capturing():
            if why == "no memory":
                raise torch.OutOfMemoryError
            outputs[0].sum().item()
        return outputs

    monkeypatch.setattr(runner, "forward", fails)
    batches = _batches(longest=64)
    expected = _answers(single, batches)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda one: _answers(one, batches), [engine, other, engine, other]):
            for ours, right in zip(found, expected, strict=True):
                np.testing.assert_allclose(ours, right, atol=1e-4)
    assert runner.uncaptured_shapes() == [(2, 32)]


@cuda
@pytest.mark.model
def test_model_loads_while_another_one_serves(demo_bundle: Path) -> None:
    source = bundle.load(demo_bundle)
    serving, single = (TorchEngine(source, "fp32", "cuda") for _ in range(2))
    batches = _batches(longest=240)
    expected = _answers(single, batches)

    def load() -> TorchEngine:
        loaded = TorchEngine(source, "fp32", "cuda")
        for ours, right in zip(_answers(loaded, batches), expected, strict=True):
            np.testing.assert_allclose(ours, right, atol=1e-4)
        return loaded

    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(load)
        for ours, right in zip(threads.submit(_answers, serving, batches).result(), expected, strict=True):
            np.testing.assert_allclose(ours, right, atol=1e-4)
        loaded = loading.result()
    for one in (serving, loaded):
        assert one.cuda
        assert one.cuda.uncaptured_shapes() == []

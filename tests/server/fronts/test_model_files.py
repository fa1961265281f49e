from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np
import pytest
from polyhead_server.engines import EngineError, Runtime
from polyhead_server.errors import StartupError
from polyhead_server.fronts.model_files import (
    ModelFiles,
    export_model,
    import_model,
    number_of,
    output_sizes,
    same_model,
)
from polyhead_server.fronts.records import RecordError
from polyhead_server.settings import Settings

from tests.support.small_bundle import EVERY_KIND

from .conftest import MakeModel


def test_a_front_gets_the_model_of_the_engine(make_model: MakeModel, settings: Callable[..., Settings]) -> None:
    model = dataclasses.replace(make_model(), fallback_reasons=("onnx on cuda, fp32: it is not installed",))
    files = export_model(model, 7)
    assert number_of(files) == 7
    found = import_model(files, settings())
    assert found.source.manifest == model.source.manifest
    assert found.source.model_id == model.source.model_id
    assert found.engine.runtime == model.engine.runtime
    assert found.fallback_reasons == model.fallback_reasons
    assert found.max_batch_tokens == model.max_batch_tokens
    assert found.tokenizer.encode(["w1 w2"]) == model.tokenizer.encode(["w1 w2"])
    assert same_model(found, model)
    with pytest.raises(EngineError):
        found.engine.run(None, None)  # type: ignore[arg-type]
    assert found.novelty
    assert model.novelty
    embeddings = np.eye(3, model.source.manifest.embedding.dimensions, dtype=np.float32)
    np.testing.assert_array_equal(found.novelty.score(embeddings), model.novelty.score(embeddings))
    assert len(files.descriptors) == 3
    for fd in files.descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_bundle_that_changed_since_it_was_loaded_is_not_handed_over(make_model: MakeModel) -> None:
    model = make_model()
    path = model.source.file("tokenizer.json")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(StartupError, match="has changed"):
        export_model(model, 1)
    path.unlink()
    with pytest.raises(StartupError, match="cannot be read again"):
        export_model(model, 1)


def test_a_front_cannot_change_the_files(make_model: MakeModel) -> None:
    files = export_model(make_model(), 1)
    for fd in files.descriptors:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    files.close()


def test_files_of_different_models_are_refused(make_model: MakeModel, settings: Callable[..., Settings]) -> None:
    one, other = export_model(make_model("one"), 1), export_model(make_model("other", temperature=3.0), 2)
    with pytest.raises(RecordError, match="another digest"):
        import_model(ModelFiles(one.description, [other.descriptors[0], *one.descriptors[1:]]), settings())
    for fd in (one.descriptors[0], *other.descriptors[1:]):
        os.close(fd)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_files_is_refused(
    make_model: MakeModel, settings: Callable[..., Settings], count: int
) -> None:
    files = export_model(make_model(), 1)
    with pytest.raises(RecordError):
        import_model(
            ModelFiles(files.description, [os.dup(fd) for fd in (*files.descriptors, *files.descriptors)][:count]),
            settings(),
        )
    files.close()


@pytest.mark.parametrize("description", [b"", b"[]", b"{}", b"\xff", b'{"number": 1}'])
def test_an_invalid_description_is_refused(description: bytes) -> None:
    with pytest.raises(RecordError, match="description"):
        number_of(ModelFiles(description, []))


def test_models_are_the_same_if_bundle_and_engine_are(make_model: MakeModel) -> None:
    model = make_model()
    assert same_model(model, dataclasses.replace(model, max_batch_tokens=1))
    assert not same_model(model, make_model("other", temperature=3.0))
    model.engine.runtime = Runtime("fake", "cpu", "int8")  # type: ignore[misc]
    assert not same_model(model, make_model("same"))


def test_output_sizes_are_those_of_the_golden_outputs() -> None:
    (golden,) = EVERY_KIND.variants["fp32"].golden
    sizes = output_sizes(EVERY_KIND)
    assert sizes[0] == len(golden.embedding)
    assert sizes[1:6] == [len(golden.logits[head.name]) for head in EVERY_KIND.heads]
    # Probabilities: one for each label, one for a sigmoid head, and the value of a regression.
    assert sizes[6:] == [3, 1, 3, 5, 1]

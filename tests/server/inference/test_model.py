"""Which engine and variant a model gets when some of them fail."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle
import pytest
from numpy.typing import NDArray
from polyhead_server import engines
from polyhead_server.engines import EngineError, Runtime
from polyhead_server.engines.collate import pad
from polyhead_server.errors import StartupError
from polyhead_server.inference.model import Model, engine_choices, load_model, trim_heap
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine


class NanEngine(FakeEngine):
    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        return [values * np.float32("nan") for values in super().run(input_ids, attention_mask)]


class RaisingEngine(FakeEngine):
    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        raise MemoryError("no memory")


def golden(manifest: bundle.Manifest, tokenizer: Tokenizer, *texts: str) -> tuple[bundle.Golden, ...]:
    """Makes golden texts with the outputs of the fake engine."""
    rows = [
        [values[0].tolist() for values in FakeEngine().run(*pad([*one.windows], 0))]
        for one in tokenizer.encode([*texts])
    ]
    return tuple(
        bundle.Golden(text, tuple(embedding), {"topic": tuple(topic), "sentiment": tuple(sentiment)})
        for text, (embedding, topic, sentiment) in zip(texts, rows, strict=True)
    )


Load = Callable[..., Model]


@pytest.fixture
def load(
    manifest: bundle.Manifest,
    tokenizer: Tokenizer,
    tokenizer_file: Path,
    settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> Load:
    """Loads a model with engines by their name, such as ``onnx/cpu``; engines without a name are not installed."""

    def run(opened: dict[str, FakeEngine], expected: tuple[bundle.Golden, ...] | None = None, **values: str) -> Model:
        whole = dataclasses.replace(
            manifest,
            files={"tokenizer.json": bundle.FileEntry("", 0)},
            variants={
                name: dataclasses.replace(
                    variant, golden=golden(manifest, tokenizer, "", "w1 w2") if expected is None else expected
                )
                for name, variant in manifest.variants.items()
            },
        )

        def open_engine(source: bundle.Bundle, name: str, device: str, variant: str, threads: int = 1) -> FakeEngine:
            choice = f"{name}/{device}" if threads == 1 else f"{name}/{device} on {threads}"
            if choice not in opened:
                raise EngineError("it is not installed")
            opened[choice].runtime = Runtime(name, device, variant)
            return opened[choice]

        monkeypatch.setattr(bundle, "load", lambda _: bundle.Bundle(tokenizer_file.parent, whole, "d" * 64))
        monkeypatch.setattr(engines, "open_engine", open_engine)
        monkeypatch.setattr(engines, "onnx_has_cuda", lambda: False)
        return load_model(settings(**values))

    return run


def test_first_choice_leaves_no_reasons(load: Load) -> None:
    engine = FakeEngine()
    model = load({"onnx/cpu": engine, "torch/cpu": FakeEngine()})
    assert model.engine is engine
    assert model.fallback_reasons == ()


@pytest.mark.parametrize(("threads", "cores"), [(2, 2), (64, 4)])
def test_model_has_a_second_engine_of_several_threads(load: Load, threads: int, cores: int) -> None:
    intra_op = FakeEngine()
    engines = {"onnx/cpu": FakeEngine(), f"onnx/cpu on {cores}": intra_op}
    assert load(engines, threads=threads).intra_op_engine is intra_op
    assert load(engines, threads=1).intra_op_engine is None


def test_self_test_is_logged_once(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    engines = {"onnx/cpu": FakeEngine(), "onnx/cpu on 2": FakeEngine()}
    assert load(engines, threads=2).intra_op_engine is not None
    assert [record.message for record in caplog.records if "self-test" in record.message] == [
        "self-test of onnx/cpu/fp32 passed: 2 texts, off by at most 0"
    ]


def test_golden_texts_are_computed_once_although_there_are_two_engines(load: Load) -> None:
    """The second engine runs the same graph on the same device: it computes the longest of them."""
    first, second = FakeEngine(), FakeEngine()
    load({"onnx/cpu": first, "onnx/cpu on 2": second}, threads=2)
    # "" and "w1 w2", each between two special tokens; batches that measure the speed follow.
    assert first.batch_shapes[:2] == [(1, 2), (1, 4)]
    assert second.batch_shapes == [(1, 4)]


def test_second_engine_that_fails_its_self_test_is_not_used(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    model = load({"onnx/cpu": engine, "onnx/cpu on 2": NanEngine()}, threads=2)
    assert (model.engine, model.intra_op_engine) == (engine, None)
    assert "each batch is computed by one thread" in caplog.text


@pytest.mark.parametrize("broken", [NanEngine, RaisingEngine])
def test_engine_that_fails_its_self_test_is_not_used(load: Load, broken: type[FakeEngine]) -> None:
    engine = FakeEngine()
    model = load({"onnx/cpu": broken(), "torch/cpu": engine})
    assert model.engine is engine
    assert [reason.split(":")[0] for reason in model.fallback_reasons] == ["onnx on cpu, fp32", "torch on cuda, fp32"]


def test_message_of_a_library_is_logged_and_not_sent_to_clients(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeEngine):
        def run(self, *_: object) -> list[NDArray[np.float32]]:
            raise RuntimeError("/srv/secret/model.onnx is broken")

    model = load({"onnx/cpu": Broken(), "torch/cpu": FakeEngine()})
    assert model.fallback_reasons[0] == "onnx on cpu, fp32: it cannot run the model"
    assert "onnx on cpu, fp32: it cannot run the model: /srv/secret/model.onnx is broken" in caplog.text
    # The operator who starts the server sees all of it.
    with pytest.raises(StartupError, match="/srv/secret"):
        load({"onnx/cpu": Broken()}, engine="onnx")


def test_wrong_answer_fails_the_self_test(load: Load, manifest: bundle.Manifest, tokenizer: Tokenizer) -> None:
    (right,) = golden(manifest, tokenizer, "w1")
    wrong = dataclasses.replace(right, logits={**right.logits, "sentiment": (right.logits["sentiment"][0] + 0.002,)})
    assert load({"onnx/cpu": FakeEngine()}, (right,)).engine.runtime.engine == "onnx"
    with pytest.raises(StartupError, match=r"off by 0\.002, tolerance 0\.001"):
        load({"onnx/cpu": FakeEngine()}, (wrong,))


def test_requested_engine_is_not_replaced(load: Load) -> None:
    with pytest.raises(StartupError, match="onnx on cpu, fp32: it is not installed"):
        load({"torch/cpu": FakeEngine()}, engine="onnx")


def test_unknown_variant_is_refused_with_the_names_of_the_others(load: Load) -> None:
    with pytest.raises(StartupError, match="no variant 'int3'; it has fp32"):
        load({"onnx/cpu": FakeEngine()}, variant="int3")


def _choices(manifest: bundle.Manifest, *variants: str, wanted: str = "auto") -> list[str]:
    (one,) = manifest.variants.values()
    several = {name: dataclasses.replace(one, batch_invariant=name != "int8-dynamic") for name in variants}
    source = bundle.Bundle(Path("fake"), dataclasses.replace(manifest, variants=several), "d" * 64)
    pairs = [("onnx", "cuda"), ("onnx", "cpu"), ("torch", "cpu")]
    return [f"{engine}/{device}/{variant}" for engine, device, variant in engine_choices(source, pairs, wanted)]


def test_auto_prefers_int8_on_the_cpu_and_then_fp32(manifest: bundle.Manifest) -> None:
    assert _choices(manifest, "fp32", "int8", "fp16", "int8-dynamic") == [
        "onnx/cuda/fp32",
        "onnx/cpu/int8",
        "onnx/cpu/fp32",
        "torch/cpu/fp32",
    ]


def test_variant_that_is_not_batch_invariant_is_used_only_on_request(manifest: bundle.Manifest) -> None:
    assert not any("dynamic" in one for one in _choices(manifest, "int8-dynamic", "fp32"))
    assert _choices(manifest, "int8-dynamic", "fp32", wanted="int8-dynamic")[1] == "onnx/cpu/int8-dynamic"


def test_directory_without_a_bundle_is_refused(settings: Callable[..., Settings], tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="not a bundle"):
        load_model(settings(bundle=tmp_path))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such function")
def test_freed_memory_is_returned_to_the_system() -> None:
    blocks = [bytes(1000) for _ in range(100_000)]
    # While the last one stays, the heap does not shrink by itself.
    last = blocks[-1]
    del blocks
    held = _resident_bytes()
    trim_heap()
    assert _resident_bytes() < held - 80e6
    assert last

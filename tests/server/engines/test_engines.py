from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import polyhead_bundle as bundle
import pytest
from polyhead_server.engines import EngineError, open_engine, preference


@pytest.mark.parametrize(
    ("engine", "device", "has_cuda", "expected"),
    [
        ("auto", "auto", True, ["onnx/cuda", "onnx/cpu", "torch/cuda", "torch/cpu"]),
        ("auto", "auto", False, ["onnx/cpu", "torch/cuda", "torch/cpu"]),
        ("auto", "cuda", False, ["onnx/cuda", "torch/cuda"]),
        ("auto", "cpu", True, ["onnx/cpu", "torch/cpu"]),
        ("torch", "auto", True, ["torch/cuda", "torch/cpu"]),
        ("onnx", "cpu", False, ["onnx/cpu"]),
    ],
)
def test_engines_are_tried_in_order_of_preference(
    engine: str, device: str, has_cuda: bool, expected: list[str]
) -> None:
    assert ["/".join(pair) for pair in preference(engine, device, onnx_has_cuda=has_cuda)] == expected


def _no_session(*_: object) -> None:
    raise RuntimeError("/srv/secret is broken")


@pytest.mark.parametrize(
    ("module", "reason"),
    [(None, "it is not installed"), (SimpleNamespace(OnnxEngine=_no_session), "it cannot be opened")],
)
def test_message_of_a_library_is_the_cause_and_not_the_reason(
    module: object, reason: str, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polyhead_server.engines.onnx", module)
    with pytest.raises(EngineError) as caught:
        open_engine(bundle.Bundle(Path("fake"), manifest, "d" * 64), "onnx", "cpu", "fp32")
    assert str(caught.value) == reason
    assert caught.value.__cause__

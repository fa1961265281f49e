from __future__ import annotations

import pytest
from polyhead_server.engines import preference


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
def test_order_of_preference(engine: str, device: str, has_cuda: bool, expected: list[str]) -> None:
    assert ["/".join(pair) for pair in preference(engine, device, onnx_has_cuda=has_cuda)] == expected

"""Engines that run the model, and the order in which they are tried.

``auto`` prefers onnxruntime to PyTorch, and CUDA to the CPU::

    onnx on cuda (where the installed onnxruntime has CUDA) > onnx on cpu > torch on cuda > torch on cpu

``--engine`` and ``--device`` restrict the list to what they name.
"""

from __future__ import annotations

from pathlib import Path

import polyhead_bundle as bundle

from .base import Engine, EngineError, Runtime

__all__ = ["Engine", "EngineError", "Runtime", "onnx_has_cuda", "open_engine", "preference", "unused_gpu_hint"]


def preference(engine: str, device: str, *, onnx_has_cuda: bool) -> list[tuple[str, str]]:
    """Returns the pairs of engine and device to try, best first.

    Args:
        engine: ``auto``, ``onnx`` or ``torch``.
        device: ``auto``, ``cpu`` or ``cuda``.
        onnx_has_cuda: Whether the installed onnxruntime supports CUDA; without it, ``auto`` does not try CUDA there.
    """
    engines = ["onnx", "torch"] if engine == "auto" else [engine]
    devices = ["cuda", "cpu"] if device == "auto" else [device]
    pairs = [(name, place) for name in engines for place in devices]
    if device == "auto" and not onnx_has_cuda:
        pairs = [pair for pair in pairs if pair != ("onnx", "cuda")]
    return pairs


def open_engine(source: bundle.Bundle, engine: str, device: str, variant: str, threads: int = 1) -> Engine:
    """Opens one engine on one device.

    Args:
        source: Bundle with the model.
        engine: ``onnx`` or ``torch``.
        device: ``cpu`` or ``cuda``.
        variant: Variant of the bundle.
        threads: Threads that compute one batch; more than one only with onnxruntime on a CPU.

    Raises:
        EngineError: The engine cannot be used, for whatever reason.
    """
    try:
        if engine == "onnx":
            from .onnx import OnnxEngine

            return OnnxEngine(source, variant, device, threads)
        from .pytorch import TorchEngine

        return TorchEngine(source, variant, device)
    except EngineError:
        raise
    except ImportError as error:
        raise EngineError("it is not installed") from error
    except Exception as error:  # a broken driver or a full GPU raises many types, and the next engine may work
        raise EngineError("it cannot be opened") from error


def onnx_has_cuda() -> bool:
    """Returns whether the installed onnxruntime was built with CUDA."""
    try:
        import onnxruntime
    except Exception:  # noqa: BLE001 - whatever is wrong with it, opening the engine reports it
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def unused_gpu_hint(runtime: Runtime) -> str | None:
    """Returns a hint for the operator when the machine has a GPU that ``runtime`` does not use."""
    if runtime.device == "cuda" or not Path("/dev/nvidiactl").exists():
        return None
    return "this machine has a GPU that is not used; install onnxruntime-gpu, or use PyTorch on it with --device cuda"

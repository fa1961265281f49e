"""The engines, and the order in which they are tried.

``auto`` prefers onnxruntime to PyTorch, and CUDA to the CPU::

    onnx on cuda (where the installed onnxruntime has CUDA) > onnx on cpu > torch on cuda > torch on cpu

``--engine`` and ``--device`` leave out what they do not name.
"""

from __future__ import annotations

from pathlib import Path

import polyhead_bundle as bundle

from .base import Engine, EngineError, Runtime

__all__ = ["Engine", "EngineError", "Runtime", "missed_chance", "open_engine", "preference"]


def preference(engine: str, device: str, *, onnx_has_cuda: bool) -> list[tuple[str, str]]:
    """Pairs of engine and device to try, best first.

    Args:
        engine: ``auto``, ``onnx`` or ``torch``.
        device: ``auto``, ``cpu`` or ``cuda``.
        onnx_has_cuda: Whether the installed onnxruntime has CUDA at all; without it, ``auto`` does not try.
    """
    engines = ["onnx", "torch"] if engine == "auto" else [engine]
    devices = ["cuda", "cpu"] if device == "auto" else [device]
    pairs = [(one_engine, one_device) for one_engine in engines for one_device in devices]
    if device == "auto" and not onnx_has_cuda:
        pairs = [pair for pair in pairs if pair != ("onnx", "cuda")]
    return pairs


def open_engine(source: bundle.Bundle, engine: str, device: str, variant: str, threads: int = 1) -> Engine:
    """Opens one engine on one device.

    Args:
        source: What it runs.
        engine: ``onnx`` or ``torch``.
        device: ``cpu`` or ``cuda``.
        variant: Of the bundle.
        threads: That compute one pass; more than one is onnxruntime's on a CPU alone.

    Raises:
        EngineError: It cannot be used, for whatever reason.
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
    except Exception as error:  # a broken driver or a full GPU has many types, and the next engine may work
        raise EngineError("it cannot be opened") from error


def onnx_has_cuda() -> bool:
    """Whether the installed onnxruntime was built with CUDA."""
    try:
        import onnxruntime
    except Exception:  # noqa: BLE001 - whatever is wrong with it, opening the engine will say so
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def missed_chance(runtime: Runtime) -> str | None:
    """What the operator may want to know when a GPU is there and not used."""
    if runtime.device == "cuda" or not Path("/dev/nvidiactl").exists():
        return None
    return "this machine has a GPU that is not used; install onnxruntime-gpu, or use PyTorch on it with --device cuda"

"""onnxruntime, on CPU or CUDA."""

from __future__ import annotations

import contextlib
import functools
import sys

import numpy as np
import onnxruntime
import polyhead_bundle as bundle
from numpy.typing import NDArray

from .base import EngineError, Runtime

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# On a CPU the fused operator is slower than the addition and the normalization on their own: without it a whole pass of
# all-MiniLM-L6-v2 is 1.08 to 1.14 times as fast in fp32, 1.2 to 1.3 times in int8-dynamic.
_DISABLED = ["SkipLayerNormFusion"]
# Of an arena that is never given back: room for the usual passes, whatever else wants memory meanwhile.
_ARENA_BYTES = 32 * 2**20


@functools.cache
def _make_arena() -> None:
    """Makes the memory that operators on a CPU work in.

    In an arena the operators of a pass take each other's memory over. Without it the kernel gives each its own, and
    zeroes it page by page.
    """
    where = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    size = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 0, "initial_chunk_size_bytes": _ARENA_BYTES})
    onnxruntime.create_and_register_allocator(where, size)


class OnnxEngine:
    """Runs one variant of the bundle's graph in one session that all threads share."""

    def __init__(self, source: bundle.Bundle, variant: str, device: str, threads: int = 1) -> None:
        """Opens the session.

        Args:
            source: Has the graph.
            variant: Which of its graphs.
            device: ``cpu`` or ``cuda``.
            threads: That compute one pass on a CPU.

        Raises:
            EngineError: onnxruntime cannot run this graph on this device.
        """
        self._provider = _PROVIDERS[device]
        if self._provider not in onnxruntime.get_available_providers():
            raise EngineError(f"the installed onnxruntime has no {self._provider}")
        if device == "cuda":
            # CUDA and cuDNN that came as wheels lie where the loader does not look. What is missing it prints.
            with contextlib.redirect_stdout(sys.stderr):
                onnxruntime.preload_dlls()
        manifest = source.manifest
        self._outputs = [manifest.embedding.output, *(head.output for head in manifest.heads)]
        path = source.file(manifest.variants[variant].file)
        try:
            session = onnxruntime.InferenceSession(
                str(path), _options(device, threads), [self._provider_options()], disabled_optimizers=_DISABLED
            )
        except Exception as error:  # onnxruntime raises its own types, one for each of its status codes
            raise EngineError(f"onnxruntime cannot load {path.name}") from error
        # Otherwise a run that fails on CUDA is repeated on the CPU, and every later one runs there, in silence.
        session.disable_fallback()
        # A provider that fails to start is left out of the session in silence.
        if session.get_providers()[0] != self._provider:
            raise EngineError(f"onnxruntime did not start {self._provider}; it offers {session.get_providers()}")
        self._session: onnxruntime.InferenceSession | None = session
        self._run_options = _run_options(device)
        self.runtime = Runtime("onnx", device, variant)

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """See ``Engine.run``."""
        if self._session is None:
            raise EngineError("it is closed")
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        return list(self._session.run(self._outputs, feeds, self._run_options))

    def close(self) -> None:
        """See ``Engine.close``."""
        self._session = None

    def _provider_options(self) -> tuple[str, dict[str, str]]:
        # TF32 keeps 10 bits of a factor: too few for answers that are equal to 1e-5.
        return self._provider, {"use_tf32": "0"} if self._provider == _PROVIDERS["cuda"] else {}


def _options(device: str, threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that share a run spin while they wait for each other, for an operator is shorter than falling asleep and
    # waking up takes. One that spins after its run steals the core of the next one.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(threads > 1)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if device == "cpu":
        # All sessions share one arena; weights stay outside of it.
        _make_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    # It would keep a plan for every shape that ever came.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return options


def _run_options(device: str) -> onnxruntime.RunOptions | None:
    if device != "cpu":
        return None
    options = onnxruntime.RunOptions()
    # After each pass the arena gives back what it took besides and no other pass uses. Otherwise it would stay as large
    # as it ever was.
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options

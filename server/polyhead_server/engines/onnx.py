"""The engine on onnxruntime, on CPU or CUDA."""

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
# On a CPU the fused operator is slower than an addition and a normalization by themselves: without it a forward pass of
# all-MiniLM-L6-v2 is 1.08 to 1.14 times as fast in fp32, 1.2 to 1.3 times in int8-dynamic.
_DISABLED = ["SkipLayerNormFusion"]
# Initial size of the arena, which is never released: enough for usual batches, however short memory becomes later.
_ARENA_BYTES = 32 * 2**20


@functools.cache
def _create_arena() -> None:
    """Creates the arena that operators on a CPU allocate from, once per process.

    In an arena the operators of a forward pass reuse each other's memory. Without it each gets new pages from the
    kernel, which zeroes them one by one.
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    config = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 0, "initial_chunk_size_bytes": _ARENA_BYTES})
    onnxruntime.create_and_register_allocator(memory, config)


class OnnxEngine:
    """Runs one variant of the bundle's graph in one session that all threads share."""

    def __init__(self, source: bundle.Bundle, variant: str, device: str, threads: int = 1) -> None:
        """Opens the session.

        Args:
            source: Bundle with the graph.
            variant: Variant of the graph.
            device: ``cpu`` or ``cuda``.
            threads: Threads that compute one batch on a CPU.

        Raises:
            EngineError: onnxruntime cannot run this graph on this device.
        """
        self._provider = _PROVIDERS[device]
        if self._provider not in onnxruntime.get_available_providers():
            raise EngineError(f"the installed onnxruntime has no {self._provider}")
        if device == "cuda":
            # The loader does not search the folders of CUDA and cuDNN wheels. The function prints what is missing.
            with contextlib.redirect_stdout(sys.stderr):
                onnxruntime.preload_dlls()
        manifest = source.manifest
        self._outputs = [manifest.embedding.output, *(head.output for head in manifest.heads)]
        path = source.file(manifest.variants[variant].file)
        try:
            session = onnxruntime.InferenceSession(
                str(path), _options(device, threads), [self._provider_options()], disabled_optimizers=_DISABLED
            )
        except Exception as error:  # onnxruntime raises types of its own, one per status code
            raise EngineError(f"onnxruntime cannot load {path.name}") from error
        # Otherwise a run that fails on CUDA is silently repeated on the CPU, and every later one runs there.
        session.disable_fallback()
        # A provider that fails to start is silently left out of the session.
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
        # Ends a run in another thread, even one that would never end.
        self._run_options.terminate = True

    def _provider_options(self) -> tuple[str, dict[str, str]]:
        # TF32 keeps 10 bits of the mantissa: too few for answers that agree to 1e-5.
        return self._provider, {"use_tf32": "0"} if self._provider == _PROVIDERS["cuda"] else {}


def _options(device: str, threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that share a run spin while they wait for each other, since an operator is shorter than falling asleep and
    # waking up. A thread that spins on after its run would take the core of the next run.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(threads > 1)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if device == "cpu":
        # All sessions share one arena; the weights stay outside of it.
        _create_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    # Otherwise the session keeps a memory plan for every shape that it ever saw.
    options.enable_mem_pattern = False
    # A failed run raises what it would also write to standard error, past the log.
    options.log_severity_level = 4
    return options


def _run_options(device: str) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    if device != "cpu":
        return options
    # After each run the arena releases what it added to its initial size and no other run uses. Otherwise it would stay
    # at its peak size.
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options

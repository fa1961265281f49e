"""Runs batches: with the trained model in PyTorch, or with a graph in onnxruntime, both on the CPU.

Both compute a batch in a single thread. The number of threads determines the order in which numbers are added, and so
the last digits of the golden outputs in a bundle, which must be the same in every export. Different batches run at the
same time, one on each CPU core::

    checks --batches--> SharedRunner --batches that it has not seen--> threads --> torch_runner or onnx_runner
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from polyhead_bundle import external_data_name

from .errors import GraphError
from .layout import EMBEDDING_OUTPUT, INPUT_NAMES

if TYPE_CHECKING:
    from polyhead_training.model import PolyheadModel

# Outputs for a batch of B texts by output name: (B, H) for the embedding, (B, logits) for each head.
Outputs = dict[str, NDArray[np.float32]]
# input_ids and attention_mask, (B, T) each.
Batch = tuple[NDArray[np.int64], NDArray[np.int64]]
# Takes input_ids and attention_mask.
Runner = Callable[[NDArray[np.int64], NDArray[np.int64]], Outputs]

# More threads gain little, and each needs memory for the activations of its batch.
_MAX_THREADS = 8
# Batches that are padded and computed together; more of them would only wait in memory.
_CHUNK_BATCHES = 64


def torch_runner(model: PolyheadModel) -> Runner:
    """Returns a runner for the trained model in fp32; the model is switched to evaluation mode."""
    import torch

    model.eval()
    names = model.config.output_names()

    def run(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Outputs:
        with torch.inference_mode(), _single_thread:
            embedding, logits = model(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
        outputs = {EMBEDDING_OUTPUT: embedding, **{names[head]: values for head, values in logits.items()}}
        return {name: values.numpy() for name, values in outputs.items()}

    return run


def onnx_runner(path: Path) -> Runner:
    """Returns a runner for an ONNX file in unmodified onnxruntime.

    Raises:
        GraphError: onnxruntime cannot load the file. The runner raises it when onnxruntime cannot run a batch.
    """
    session = cpu_session(path)
    outputs = [output.name for output in session.get_outputs()]

    def run(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Outputs:
        feeds = dict(zip(INPUT_NAMES, (input_ids, attention_mask), strict=True))
        try:
            return dict(zip(outputs, session.run(outputs, feeds), strict=True))
        except Exception as error:  # onnxruntime defines one error type for each of its status codes
            raise GraphError(f"onnxruntime cannot run {path.name} on {input_ids.shape} tokens: {error}") from error

    return run


@contextmanager
def _progress(description: str, total: int) -> Iterator[Callable[[str], None]]:
    if not description:
        yield lambda _: None
        return
    # A server without rich verifies bundles too, and shows no progress.
    from polyhead_training.terminal import progress_bar

    with progress_bar(description, "batches", total) as advance:
        yield advance


class SharedRunner:
    """A runner for several checks: it computes each batch once, and different batches at the same time.

    Args:
        open_runner: Opens the runner that computes a batch; called when the first batch requires it.
        threads: Executor for the batches; None to compute them one after the other.
    """

    def __init__(self, open_runner: Callable[[], Runner], threads: Executor | None = None) -> None:
        self._open_runner = open_runner
        self._threads = threads
        self._runner: Runner | None = None
        self._outputs: dict[bytes, Outputs] = {}

    def __call__(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Outputs:
        """Returns the outputs for a batch; they are shared, so the arrays are read-only."""
        return self.run_all([(input_ids, attention_mask)])[0]

    def run_all(self, batches: Sequence[Batch]) -> list[Outputs]:
        """Returns the outputs for each batch."""
        keys = [_digest(batch) for batch in batches]
        new = {key: batch for key, batch in zip(keys, batches, strict=True) if key not in self._outputs}
        if new:
            self._runner = runner = self._runner or self._open_runner()
            run = self._threads.map if self._threads else map
            for key, outputs in zip(new, run(lambda batch: runner(*batch), new.values()), strict=True):
                for values in outputs.values():
                    values.flags.writeable = False
                self._outputs[key] = outputs
        return [self._outputs[key] for key in keys]

    def close(self, open_runner: Callable[[], Runner]) -> None:
        """Frees the runner's memory and keeps the outputs; a batch that is new opens another runner of the graph."""
        self._open_runner = open_runner
        self._runner = None


class SharedRunners:
    """The shared runners of an export: one for each different graph, whatever the names of their files.

    Args:
        threads: Executor for the batches.
    """

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._graphs: dict[bytes, SharedRunner] = {}
        self._open = b""

    def graph(self, path: Path) -> SharedRunner:
        """Returns the runner of a graph. Other graphs leave the memory; their outputs remain."""
        digest, opened = _file_digest(path), partial(onnx_runner, path)
        if digest != self._open:
            for other in self._graphs.values():
                other.close(_closed)
            # The file of an equal graph may have been overwritten since.
            self._graphs.setdefault(digest, SharedRunner(opened, self._threads)).close(opened)
            self._open = digest
        return self._graphs[digest]

    def model(self, model: PolyheadModel) -> SharedRunner:
        """Returns a runner of the trained model."""
        return SharedRunner(partial(torch_runner, model), self._threads)


def run_all(runner: Runner, batches: Iterable[Batch], total: int, description: str = "") -> Iterator[Outputs]:
    """Yields the outputs for each batch, in order; a ``SharedRunner`` computes many of them at the same time.

    Args:
        runner: The runner.
        batches: The batches, which may be built as they are needed.
        total: Number of batches.
        description: Text of the progress bar; empty for none.
    """
    remaining = iter(batches)
    with _progress(description, total) as advance:
        while chunk := list(islice(remaining, _CHUNK_BATCHES)):
            found = runner.run_all(chunk) if isinstance(runner, SharedRunner) else [runner(*batch) for batch in chunk]
            for outputs in found:
                advance("")
                yield outputs


def worker_threads() -> ThreadPoolExecutor:
    """Returns an executor with a thread for each CPU core that this process may use, at most 8."""
    return ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _MAX_THREADS), "polyhead-export")


def _closed() -> Runner:
    raise RuntimeError("another graph has been opened since")


def _file_digest(path: Path) -> bytes:
    """SHA-256 over a graph's file and the file of its weights, if it has one."""
    digest = hashlib.sha256()
    for file in (path, path.with_name(external_data_name(path.name))):
        if file.exists():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.digest()


def _digest(batch: Batch) -> bytes:
    input_ids, attention_mask = batch
    digest = hashlib.sha256(repr(input_ids.shape).encode())
    digest.update(input_ids.tobytes())
    digest.update(attention_mask.tobytes())
    return digest.digest()


class _SingleThread:
    """Limits torch to one thread per batch while any batch runs, in whichever thread it runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._threads = 1

    def __enter__(self) -> None:
        import torch

        with self._lock:
            if self._running == 0:
                self._threads = torch.get_num_threads()
            self._running += 1
            # OpenMP keeps the number for each of its callers.
            torch.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        import torch

        with self._lock:
            self._running -= 1
            if self._running == 0:
                torch.set_num_threads(self._threads)


_single_thread = _SingleThread()


def cpu_session(path: Path) -> onnxruntime.InferenceSession:
    """Opens a session of unmodified onnxruntime on the CPU.

    Raises:
        GraphError: onnxruntime cannot load the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Errors only: warnings about skipped graph optimizations do not help a user who exports a model.
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime defines one error type for each of its status codes
        raise GraphError(f"onnxruntime cannot load it: {error}") from error

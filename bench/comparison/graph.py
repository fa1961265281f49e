"""A bundle's graph as every compared server runs it, so that all of them do the same work.

It requires numpy, tokenizers and onnxruntime alone. Its settings come from environment variables, which every server
passes on to its workers: ``COMPARISON_BUNDLE``, ``COMPARISON_VARIANT``, ``COMPARISON_PORT``, ``COMPARISON_BATCH`` (the
maximum texts per batch) and ``COMPARISON_WAIT_MS`` (the maximum time to wait for a batch to fill).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import tokenizers
from numpy.typing import NDArray


class Outputs(NamedTuple):
    """Outputs of the model for a batch, one row per text."""

    embeddings: NDArray[np.float32]  # (B, H)
    probabilities: NDArray[np.float32]  # (B, labels)
    sentiments: NDArray[np.float32]  # (B, 1)


class Setting(NamedTuple):
    """Port and batching of a server."""

    port: int
    batch: int
    wait_ms: float

    @classmethod
    def from_environment(cls) -> Setting:
        """Reads the setting from the environment variables."""
        environment = os.environ
        return cls(
            int(environment["COMPARISON_PORT"]),
            int(environment["COMPARISON_BATCH"]),
            float(environment["COMPARISON_WAIT_MS"]),
        )


class Graph:
    """One session with one thread; the options are those of ``polyhead_server/engines/onnx.py``."""

    def __init__(self) -> None:
        folder = Path(os.environ["COMPARISON_BUNDLE"])
        manifest = json.loads((folder / "bundle.json").read_bytes())
        self._pad = manifest["pad_token_id"]
        self._softmax = next(head for head in manifest["heads"] if head["kind"] == "softmax")
        self._sigmoid = next(head for head in manifest["heads"] if head["kind"] == "sigmoid")
        self._outputs = [manifest["embedding"]["output"], self._softmax["output"], self._sigmoid["output"]]
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(manifest["max_tokens"])
        self._tokenizer.encode_special_tokens = True
        variant = manifest["variants"][os.environ["COMPARISON_VARIANT"]]
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / variant["file"]),
            _session_options(),
            ["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion"],
        )
        self._run_options: Any = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, texts: Sequence[str]) -> Outputs:
        """Tokenizes, pads and runs a batch of texts."""
        rows = [one.ids for one in self._tokenizer.encode_batch_fast(list(texts))]
        ids = np.full((len(rows), max(map(len, rows))), self._pad, dtype=np.int64)  # (B, T)
        mask = np.zeros_like(ids)  # (B, T)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask}
        embeddings, topic, sentiment = self._session.run(self._outputs, feeds, self._run_options)
        powers = np.exp(topic / self._softmax["temperature"])  # (B, labels)
        sentiments = 1 / (1 + np.exp(-sentiment / self._sigmoid["temperature"]))  # (B, 1)
        return Outputs(embeddings, powers / powers.sum(axis=-1, keepdims=True), sentiments)


def _session_options() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return options

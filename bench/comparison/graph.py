"""A bundle's graph as every rival runs it, so that all do the same work: tokens, padding, one run, the heads' answers.

It needs numpy, tokenizers and onnxruntime alone, and takes its orders from the environment, which every rival hands
down to its workers: ``RIVAL_BUNDLE``, ``RIVAL_VARIANT``, ``RIVAL_PORT``, ``RIVAL_BATCH`` (most texts in a batch) and
``RIVAL_WAIT_MS`` (longest wait for a batch to fill).
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


class Answers(NamedTuple):
    """What the model says about a batch, a row for each text."""

    embeddings: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    sentiments: NDArray[np.float32]


class Setting(NamedTuple):
    """What a rival is told besides the model."""

    port: int
    batch: int
    wait_ms: float

    @classmethod
    def read(cls) -> Setting:
        """The setting in the environment."""
        return cls(int(os.environ["RIVAL_PORT"]), int(os.environ["RIVAL_BATCH"]), float(os.environ["RIVAL_WAIT_MS"]))


class Graph:
    """One session with one thread; the options are those of ``polyhead_server/engines/onnx.py``."""

    def __init__(self) -> None:
        folder = Path(os.environ["RIVAL_BUNDLE"])
        manifest = json.loads((folder / "bundle.json").read_bytes())
        self._pad = manifest["pad_token_id"]
        self._softmax = next(head for head in manifest["heads"] if head["kind"] == "softmax")
        self._sigmoid = next(head for head in manifest["heads"] if head["kind"] == "sigmoid")
        self._outputs = [manifest["embedding"]["output"], self._softmax["output"], self._sigmoid["output"]]
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(manifest["max_tokens"])
        self._tokenizer.encode_special_tokens = True
        variant = manifest["variants"][os.environ["RIVAL_VARIANT"]]
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / variant["file"]),
            _options(),
            ["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion"],
        )
        self._run_options: Any = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def answer(self, texts: Sequence[str]) -> Answers:
        """Answers a batch of texts."""
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
        return Answers(embeddings, powers / powers.sum(axis=-1, keepdims=True), sentiments)


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return options

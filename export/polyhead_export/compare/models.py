"""The two models of a comparison: each reads the texts with its own tokenizer and computes them with its own graph.

::

    BUNDLE, texts --open_model--> --answer--> Answers: outputs, token counts, CPU time
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray
from polyhead_bundle import Bundle
from polyhead_training.tokenization import encode_counted, load_tokenizer

from polyhead_export.errors import ContentError, GraphError, SettingsError
from polyhead_export.eval_data import predict
from polyhead_export.layout import TOKENIZER
from polyhead_export.runners import Outputs, SharedRunner, onnx_runner

# What the server takes on a CPU.
_DEFAULT_VARIANTS = ("int8", "fp32")


@dataclass(frozen=True)
class Answers:
    """What a model answers to N texts.

    Attributes:
        bundle: The model.
        variant: The variant of its graph.
        outputs: (N, dimensions) of the embedding and (N, logits) of each head, by name of the output.
        tokens: (N,) tokens of each text, special tokens included, before truncation.
        cpu_seconds: CPU time of the passes and the tokenizer.
    """

    bundle: Bundle
    variant: str
    outputs: Outputs
    tokens: NDArray[np.int64]
    cpu_seconds: float

    @property
    def truncated(self) -> int:
        """Number of texts that are longer than the model reads."""
        return int((self.tokens > self.bundle.manifest.max_tokens).sum())


def open_model(path: Path, variant: str | None) -> tuple[Bundle, str]:
    """Loads a bundle and chooses the variant: the given one, or int8 if it has that, else fp32.

    Raises:
        BundleError: It is not a bundle, or a file was changed.
        SettingsError: It has no such variant.
    """
    found = bundle.load(path)
    variants = found.manifest.variants
    if variant is None:
        return found, next(name for name in _DEFAULT_VARIANTS if name in variants)
    if variant not in variants:
        raise SettingsError(path, f"has no variant {variant!r}; it has {', '.join(variants)}")
    return found, variant


def answer(found: Bundle, variant: str, texts: Sequence[str], threads: Executor, description: str) -> Answers:
    """Computes the answers to N texts.

    Args:
        found: The model.
        variant: Name of its variant.
        texts: The texts.
        threads: Executor of the batches.
        description: Text of the progress bar.

    Raises:
        ContentError: The graph cannot be run.
    """
    manifest = found.manifest
    file = found.file(manifest.variants[variant].file)
    started = time.process_time()
    tokenizer = load_tokenizer(found.file(TOKENIZER))
    encoded = list(encode_counted(tokenizer, texts, manifest.max_tokens))
    try:
        runner = SharedRunner(partial(onnx_runner, file), threads)
        outputs = predict(runner, [ids for ids, _ in encoded], manifest.pad_token_id, description)
    except GraphError as error:
        raise ContentError(file, str(error)) from error
    seconds = time.process_time() - started
    return Answers(found, variant, outputs, np.array([count for _, count in encoded]), seconds)

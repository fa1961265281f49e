"""Loads a bundle into a model that has passed its self-test on the engine and device that will serve."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle

from polyhead_server import engines
from polyhead_server.engines import Engine, EngineError, Runtime
from polyhead_server.engines.collate import pad
from polyhead_server.errors import StartupError
from polyhead_server.settings import Settings

from . import autotune
from .novelty import Novelty, load_novelty
from .tokenization import Tokenizer

logger = logging.getLogger(__name__)

# One text is too little work for more.
_MAX_INTRA_OP_THREADS = 4


# Compared by identity: two loads of one bundle are two models.
@dataclass(frozen=True, eq=False)
class Model:
    """A verified model, ready to answer.

    Attributes:
        source: Bundle that the model was loaded from.
        tokenizer: Converts texts to token ids.
        engine: Runs the forward pass.
        fallback_reasons: Why each engine, device or variant that was preferred to ``engine`` is not used, in words that
            clients may see.
        max_batch_tokens: Batch size limit in tokens, padding included.
        tokens_per_s: Token rate of one thread as measured at start; 0 where it was not measured.
        overhead_tokens: Fixed cost of a batch, as the number of tokens that are computed in that time.
        intra_op_engine: The same as ``engine`` on several cores at once, for a batch that has the machine to itself;
            None where there is none.
        novelty: Computes the novelty of embeddings; None for a bundle without it.
    """

    source: bundle.Bundle
    tokenizer: Tokenizer
    engine: Engine
    fallback_reasons: tuple[str, ...]
    max_batch_tokens: int
    tokens_per_s: float = 0.0
    overhead_tokens: float = 0.0
    intra_op_engine: Engine | None = None
    novelty: Novelty | None = None

    @property
    def fingerprints(self) -> bundle.Fingerprints:
        """Fingerprints of the variant that answers."""
        return self.source.manifest.variants[self.engine.runtime.variant].fingerprints

    def close(self) -> None:
        """Frees the memory of the model, whatever still refers to it; takes some milliseconds."""
        self.tokenizer.close()
        self.engine.close()
        if self.intra_op_engine:
            self.intra_op_engine.close()
        trim_heap()


class Loading:
    """A load in progress, which another thread may abandon."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._abandoned = False

    def abandon(self) -> None:
        """Stops the load as soon as the engine allows."""
        with self._lock:
            self._abandoned = True
            engine = self._engine
        if engine:
            engine.close()

    def raise_if_abandoned(self) -> None:
        """Returns if the load has not been abandoned.

        Raises:
            StartupError: It has.
        """
        if self._abandoned:
            raise StartupError("the load was abandoned")

    def guard(self, engine: Engine) -> Engine:
        """Returns an engine that ``abandon`` closes, whatever it computes by then."""
        with self._lock:
            self._engine = engine
            abandoned = self._abandoned
        if abandoned:
            engine.close()
        return engine


def trim_heap() -> None:
    """Returns freed memory to the system. glibc keeps it otherwise: half the size of a model that was closed."""
    # Other C libraries have no such function.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def load_model(settings: Settings, loading: Loading | None = None) -> Model:
    """Verifies the bundle, opens the best engine that works, and checks it against the golden texts.

    Args:
        settings: Settings of the server.
        loading: Allows another thread to abandon the load.

    Raises:
        StartupError: The bundle is damaged, the variant is unknown, or no engine passes its self-test.
    """
    loading = loading or Loading()
    source, tokenizer = _open_bundle(settings)
    novelty = load_novelty(source)
    engine, fallback_reasons = _first_working_engine(source, tokenizer, settings, loading)
    if hint := engines.unused_gpu_hint(engine.runtime):
        logger.warning(hint)
    tuned = autotune.measure(engine, source.manifest.max_tokens, settings.max_batch_tokens)
    intra_op_engine = _intra_op_engine(source, tokenizer, engine.runtime, settings, loading)
    loading.raise_if_abandoned()
    return Model(
        source,
        tokenizer,
        engine,
        fallback_reasons,
        tuned.batch_tokens,
        tuned.tokens_per_s,
        tuned.overhead_tokens,
        intra_op_engine,
        novelty,
    )


def check_bundle(settings: Settings) -> Iterator[str]:
    """Verifies the bundle as ``load_model`` does, and every other variant that the selected engine could serve.

    Yields:
        One line per check that passed.

    Raises:
        StartupError: As ``load_model`` does, or another variant of the bundle does not reproduce its golden texts.
    """
    source, tokenizer = _open_bundle(settings)
    load_novelty(source)
    yield f"{source.model_id}: {len(source.manifest.files)} files are unchanged"
    yield f"signature matches {settings.public_key}" if settings.public_key else "signature: skipped, no --public-key"
    engine, rejected = _first_working_engine(source, tokenizer, settings, Loading())
    runtime = engine.runtime
    engine.close()
    yield from (f"not used: {reason}" for reason in rejected)
    others = [name for name in source.manifest.variants if name != runtime.variant]
    # PyTorch has one set of weights for all variants.
    for variant in [runtime.variant, *(others if settings.variant == "auto" and runtime.engine == "onnx" else [])]:
        try:
            engine = engines.open_engine(source, runtime.engine, runtime.device, variant)
            difference = largest_difference(source, tokenizer, engine)
        except EngineError as error:
            detail = f": {error.__cause__}" if error.__cause__ else ""
            raise StartupError(f"{source.path}: variant {variant}: {error}{detail}") from error
        engine.close()
        texts = len(source.manifest.variants[variant].golden)
        yield f"{runtime.engine} on {runtime.device}, {variant}: {texts} golden texts, off by at most {difference:.2g}"
    tokenizer.close()


def _open_bundle(settings: Settings) -> tuple[bundle.Bundle, Tokenizer]:
    """Verifies a bundle and its signature, and opens its tokenizer.

    Raises:
        StartupError: The bundle is damaged, does not match its signature, or its tokenizer is invalid.
    """
    try:
        # Where a link is switched to another bundle meanwhile, everything is still read from this one.
        source = bundle.load(settings.bundle.resolve())
        if settings.public_key:
            signature = Path(settings.signature) if settings.signature else None
            bundle.verify_signature(source, Path(settings.public_key), signature)
        manifest = source.manifest
        path = source.file(bundle.TOKENIZER)
    except bundle.BundleError as error:
        raise StartupError(str(error)) from error
    try:
        tokenizer = Tokenizer(path, manifest.max_tokens, manifest.max_tokens * settings.max_characters_per_token)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library has no error class of its own, and panics on some damaged files
        raise StartupError(f"{path}: is not a valid tokenizer: {error}") from error
    return source, tokenizer


def _first_working_engine(
    source: bundle.Bundle, tokenizer: Tokenizer, settings: Settings, loading: Loading
) -> tuple[Engine, tuple[str, ...]]:
    """Returns the first engine in the order of preference that passes its self-test, and why those before it did not.

    Raises:
        StartupError: None of them passes.
    """
    pairs = engines.preference(settings.engine, settings.device, onnx_has_cuda=engines.onnx_has_cuda())
    reasons: list[str] = []
    # The same with the messages of libraries, which may contain paths: for the operator, not for clients.
    details: list[str] = []
    for name, device, variant in engine_choices(source, pairs, settings.variant):
        loading.raise_if_abandoned()
        try:
            engine = loading.guard(engines.open_engine(source, name, device, variant))
            self_test(source, tokenizer, engine)
        except EngineError as error:
            reasons.append(f"{name} on {device}, {variant}: {error}")
            details.append(f"{reasons[-1]}: {error.__cause__}" if error.__cause__ else reasons[-1])
            logger.warning("not used: %s", details[-1])
            continue
        return engine, tuple(reasons)
    # Nothing was tried where no variant may be chosen automatically.
    tried = details or ["no variant is batch-invariant; select one with --variant"]
    raise StartupError("no engine can serve this bundle:\n  " + "\n  ".join(tried))


def _intra_op_engine(
    source: bundle.Bundle, tokenizer: Tokenizer, runtime: Runtime, settings: Settings, loading: Loading
) -> Engine | None:
    threads = min(settings.compute_threads(runtime.device), _MAX_INTRA_OP_THREADS)
    if (runtime.engine, runtime.device) != ("onnx", "cpu") or threads < 2:
        return None
    try:
        engine = loading.guard(engines.open_engine(source, runtime.engine, runtime.device, runtime.variant, threads))
        # The self-test of the same graph has passed on this device; a long text shows that its threads agree with it.
        largest_difference(source, tokenizer, engine, longest_only=True)
    except EngineError as error:
        logger.warning("each batch is computed by one thread: %s", error)
        return None
    return engine


def engine_choices(source: bundle.Bundle, pairs: list[tuple[str, str]], wanted: str) -> Iterator[tuple[str, str, str]]:
    """Yields engine, device and variant, best first; ``auto`` prefers int8 on a CPU where the bundle has it."""
    variants = source.manifest.variants
    if wanted not in {"auto", *variants}:
        raise StartupError(f"{source.path}: has no variant {wanted!r}; it has {', '.join(variants)}")
    for name, device in pairs:
        preferred = ("int8", "fp32") if (name, device) == ("onnx", "cpu") else ("fp32",)
        # Only batch-invariant variants, whose results do not depend on the other texts in the batch, are automatic.
        safe = [variant for variant in preferred if variant in variants and variants[variant].batch_invariant]
        for variant in safe if wanted == "auto" else [wanted]:
            yield name, device, variant


def self_test(source: bundle.Bundle, tokenizer: Tokenizer, engine: Engine) -> None:
    """Compares the outputs for every golden text with those that the bundle states, and logs the result.

    Raises:
        EngineError: An output differs by more than the variant's tolerance, or is not a number.
    """
    largest = largest_difference(source, tokenizer, engine)
    texts = len(source.manifest.variants[engine.runtime.variant].golden)
    logger.info("self-test of %s passed: %d texts, off by at most %.2g", engine.runtime, texts, largest)


def largest_difference(
    source: bundle.Bundle, tokenizer: Tokenizer, engine: Engine, *, longest_only: bool = False
) -> float:
    """Runs every golden text by itself; returns the largest difference of an output from the bundle's, in its unit.

    Args:
        source: The bundle.
        tokenizer: Its tokenizer.
        engine: The engine.
        longest_only: Run only the longest golden text.

    Raises:
        EngineError: An output differs by more than the variant's tolerance, or is not a number.
    """
    manifest = source.manifest
    variant = manifest.variants[engine.runtime.variant]
    tolerance = variant.golden_tolerance
    expected_texts = variant.golden
    if longest_only:
        expected_texts = (max(expected_texts, key=lambda golden: len(golden.text)),)
    texts = tokenizer.encode([golden.text for golden in expected_texts])
    largest = 0.0
    for golden, text in zip(expected_texts, texts, strict=True):
        expected = [golden.embedding, *(golden.logits[head.name] for head in manifest.heads)]
        # The outputs of a regression head are on the scale of its training data.
        units = [1.0, *(head.spread for head in manifest.heads)]
        try:
            outputs = engine.run(*pad(list(text.windows), manifest.pad_token_id))
        except Exception as error:  # whatever the reason, this engine does not serve
            raise EngineError("it cannot run the model") from error
        for values, golden_values, unit in zip(outputs, expected, units, strict=True):
            if values.shape != (1, len(golden_values)):
                raise EngineError(f"it answers with {values.shape[-1]} values, the bundle states {len(golden_values)}")
            difference = float(np.abs(values[0] - np.asarray(golden_values, dtype=np.float32)).max()) / unit
            # Written so that NaN fails.
            if not difference <= tolerance:
                raise EngineError(
                    f"it answers golden texts wrongly: off by {difference:.2g}, tolerance {tolerance:.2g}"
                )
            largest = max(largest, difference)
    return largest


def describe(model: Model, threads: int) -> str:
    """Describes a model in one line for the log."""
    runtime = model.engine.runtime
    return (
        f"engine {runtime.engine} on {runtime.device}, variant {runtime.variant}, "
        f"{threads} compute threads, batches of {model.max_batch_tokens} tokens"
    )

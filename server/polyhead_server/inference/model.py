"""From a bundle to a model that has answered its golden texts right, on the engine and device that will serve."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from polyhead_server import engines, memory
from polyhead_server.engines import Engine, EngineError, Runtime
from polyhead_server.errors import StartupError
from polyhead_server.settings import Settings

from . import autotune
from .tokenization import Tokenizer
from .types import TokenizedText

logger = logging.getLogger(__name__)

# A text is too little work for more.
_MOST_LONE_THREADS = 4


@dataclass(frozen=True)
class Model:
    """A verified model, ready to answer.

    Attributes:
        source: The bundle it came from.
        tokenizer: Texts to token ids.
        engine: Token ids to numbers.
        fallback_reasons: Why each choice that was preferred to ``engine`` is not used, as clients may know it.
        max_batch_tokens: Tokens of a pass, padding included.
        tokens_per_s: How many tokens one thread computes in a second, as measured at start; 0 where it was not.
        start_tokens: What starting a pass costs, as the tokens that are computed in that time.
        lone_engine: ``engine`` on several cores at once, for a pass that has them to itself; None where there is none.
    """

    source: bundle.Bundle
    tokenizer: Tokenizer
    engine: Engine
    fallback_reasons: tuple[str, ...]
    max_batch_tokens: int
    tokens_per_s: float = 0.0
    overhead_tokens: float = 0.0
    lone_engine: Engine | None = None

    @property
    def fingerprints(self) -> bundle.Fingerprints:
        """Fingerprints of what answers."""
        return self.source.manifest.variants[self.engine.runtime.variant].fingerprints

    def close(self) -> None:
        """Frees what is large, whoever still refers to the model; takes some milliseconds."""
        self.tokenizer.close()
        self.engine.close()
        if self.lone_engine:
            self.lone_engine.close()
        memory.give_back()


def load_model(settings: Settings) -> Model:
    """Verifies the bundle, opens the best engine that works, and holds it against the golden texts.

    Raises:
        StartupError: The bundle is damaged, the variant unknown, or no engine answered right.
    """
    try:
        # Where a link is switched to another bundle meanwhile, all is still read from this one.
        source = bundle.load(settings.bundle.resolve())
        manifest = source.manifest
        max_characters = manifest.max_tokens * settings.max_characters_per_token
        path = source.file("tokenizer.json")
    except bundle.BundleError as error:
        raise StartupError(str(error)) from error
    try:
        tokenizer = Tokenizer(path, manifest.max_tokens, max_characters)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library has no class of its own, and panics over some damages
        raise StartupError(f"{path}: is no tokenizer that can be used: {error}") from error
    pairs = engines.preference(settings.engine, settings.device, onnx_has_cuda=engines.onnx_has_cuda())
    reasons: list[str] = []
    # The same with what libraries say, paths and all: for the operator, and not for clients.
    details: list[str] = []
    for name, device, variant in _choices(source, pairs, settings.variant):
        try:
            engine = engines.open_engine(source, name, device, variant)
            self_test(source, tokenizer, engine)
        except EngineError as error:
            reasons.append(f"{name} on {device}, {variant}: {error}")
            details.append(f"{reasons[-1]}: {error.__cause__}" if error.__cause__ else reasons[-1])
            logger.warning("not used: %s", details[-1])
            continue
        if missed := engines.missed_chance(engine.runtime):
            logger.warning(missed)
        measured = autotune.measure(engine, manifest.max_tokens, settings.max_batch_tokens)
        return Model(
            source,
            tokenizer,
            engine,
            tuple(reasons),
            measured.batch_tokens,
            measured.tokens_per_s,
            measured.overhead_tokens,
            _lone_engine(source, tokenizer, engine.runtime, settings),
        )
    # Nothing was tried where no variant may be chosen without being asked for.
    tried = details or ["no variant answers the same alone and in any batch; name one with --variant"]
    raise StartupError("no engine can serve this bundle:\n  " + "\n  ".join(tried))


def _lone_engine(source: bundle.Bundle, tokenizer: Tokenizer, runtime: Runtime, settings: Settings) -> Engine | None:
    threads = min(settings.compute_threads(runtime.device), _MOST_LONE_THREADS)
    if (runtime.engine, runtime.device) != ("onnx", "cpu") or threads < 2:
        return None
    try:
        engine = engines.open_engine(source, runtime.engine, runtime.device, runtime.variant, threads)
        self_test(source, tokenizer, engine)
    except EngineError as error:
        logger.warning("passes are computed by one thread each: %s", error)
        return None
    return engine


def _choices(source: bundle.Bundle, pairs: list[tuple[str, str]], wanted: str) -> Iterator[tuple[str, str, str]]:
    """Engine, device and variant, best first; ``auto`` takes int8 on a CPU where it is there and answers right."""
    variants = source.manifest.variants
    if wanted not in {"auto", *variants}:
        raise StartupError(f"{source.path}: has no variant {wanted!r}; it has {', '.join(variants)}")
    for name, device in pairs:
        preferred = ("int8", "fp32") if (name, device) == ("onnx", "cpu") else ("fp32",)
        # Only what answers the same alone and in any batch is chosen without being asked for.
        safe = [one for one in preferred if one in variants and variants[one].batch_invariant]
        for variant in safe if wanted == "auto" else [wanted]:
            yield name, device, variant


def pad(batch: list[list[int]], pad_token_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids of B texts as two (B, T) arrays: ids filled up to the longest text, and the mask of real tokens."""
    width = max(map(len, batch))
    input_ids = np.full((len(batch), width), pad_token_id, dtype=np.int64)  # (B, T)
    attention_mask = np.zeros((len(batch), width), dtype=np.int64)  # (B, T)
    for row, ids in enumerate(batch):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask


def self_test(source: bundle.Bundle, tokenizer: Tokenizer, engine: Engine) -> None:
    """Lets the engine answer every golden text alone and holds the answers against the variant's.

    Raises:
        EngineError: An answer is further off than the variant's tolerance, or is not a number.
    """
    manifest = source.manifest
    variant = manifest.variants[engine.runtime.variant]
    tolerance = variant.golden_tolerance
    tokens: list[TokenizedText] = tokenizer.encode([golden.text for golden in variant.golden])
    worst = 0.0
    for golden, one in zip(variant.golden, tokens, strict=True):
        expected = [golden.embedding, *(golden.logits[head.name] for head in manifest.heads)]
        try:
            outputs = engine.run(*pad(list(one.windows), manifest.pad_token_id))
        except Exception as error:  # whatever it is: this engine does not serve
            raise EngineError("it cannot run the model") from error
        for values, wanted in zip(outputs, expected, strict=True):
            if values.shape != (1, len(wanted)):
                raise EngineError(f"it answers with {values.shape[-1]} numbers, the bundle says {len(wanted)}")
            difference = float(np.abs(values[0] - np.asarray(wanted, dtype=np.float32)).max())
            # Written so that NaN fails.
            if not difference <= tolerance:
                raise EngineError(
                    f"it answers golden texts wrongly: off by {difference:.2g}, tolerance {tolerance:.2g}"
                )
            worst = max(worst, difference)
    logger.info("self-test of %s passed: %d texts, off by at most %.2g", engine.runtime, len(tokens), worst)


def describe(model: Model, threads: int) -> str:
    """One line for the log."""
    runtime = model.engine.runtime
    return (
        f"engine {runtime.engine} on {runtime.device}, variant {runtime.variant}, "
        f"{threads} compute threads, passes of {model.max_batch_tokens} tokens"
    )

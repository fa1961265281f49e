"""What a front needs of a model, as the engine process hands it over: some of its files, and where it runs.

The files travel as sealed memory, so a front serves exactly the model that the engine has loaded, whatever stands in
the bundle's place on disk by then.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray
from polyhead_bundle import codec

from polyhead_server.engines import EngineError, Runtime
from polyhead_server.errors import StartupError
from polyhead_server.inference.head_answers import numbers_of
from polyhead_server.inference.model import Model
from polyhead_server.inference.novelty import read_novelty
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.settings import Settings

from .channel import close_all
from .records import RecordError

_SEAL_ALL = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# Clients may read these reasons, and the message has a limit.
_MAX_REASONS = 20
_MAX_REASON_CHARACTERS = 500


class ModelFiles(NamedTuple):
    """A model on its way to the fronts.

    Attributes:
        description: JSON: the fields of ``_Description``, and the number of the model.
        descriptors: Those of ``bundle.json``, ``tokenizer.json`` and, if the model has it, ``novelty.npy``.
    """

    description: bytes
    descriptors: Sequence[int]

    def close(self) -> None:
        """Closes the descriptors."""
        close_all(*self.descriptors)


@dataclasses.dataclass(frozen=True)
class _Description:
    number: int
    digest: str
    engine: str
    device: str
    variant: str
    fallback_reasons: list[str]
    max_batch_tokens: int


class RemoteEngine:
    """Stands for the engine of another process, which computes."""

    def __init__(self, runtime: Runtime) -> None:
        """Takes the report of where the engine runs."""
        self.runtime = runtime

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Raises EngineError: the engine process computes."""
        del input_ids, attention_mask
        raise EngineError("it runs in another process")

    def close(self) -> None:
        """Does nothing: the model is not in this process."""


def export_model(model: Model, number: int) -> ModelFiles:
    """Copies the files of a model into sealed memory.

    Args:
        model: A loaded model.
        number: Its number among the models of this engine process.

    Raises:
        StartupError: A file of the bundle has changed since the model was loaded.
    """
    source, runtime = model.source, model.engine.runtime
    try:
        manifest = (source.path / bundle.MANIFEST_NAME).read_bytes()
        files = {name: source.file(name).read_bytes() for name in _listed_files(source.manifest)}
        _, digest, _ = codec.parse(source.path / bundle.MANIFEST_NAME)
    except (OSError, bundle.BundleError) as error:
        raise StartupError(f"{source.path}: cannot be read again: {error}", transient=True) from error
    unchanged = all(
        hashlib.sha256(data).hexdigest() == source.manifest.files[name].sha256 for name, data in files.items()
    )
    if digest != source.digest or not unchanged:
        raise StartupError(f"{source.path}: has changed while it was loaded", transient=True)
    reasons = [reason[:_MAX_REASON_CHARACTERS] for reason in model.fallback_reasons[:_MAX_REASONS]]
    description = _Description(
        number,
        source.digest,
        runtime.engine,
        runtime.device,
        runtime.variant,
        reasons,
        model.max_batch_tokens,
    )
    text = json.dumps(dataclasses.asdict(description)).encode()
    return ModelFiles(text, [_sealed(name, data) for name, data in {bundle.MANIFEST_NAME: manifest, **files}.items()])


def number_of(files: ModelFiles) -> int:
    """Returns the number of a received model.

    Raises:
        RecordError: The description is not valid.
    """
    return _describe(files.description).number


def import_model(files: ModelFiles, settings: Settings) -> Model:
    """Makes the model of a front from received files, and closes their descriptors.

    Raises:
        RecordError: The files are not valid.
    """
    try:
        description = _describe(files.description)
        paths = [Path(f"/proc/self/fd/{descriptor}") for descriptor in files.descriptors]
        if not paths:
            raise RecordError("a model without files")
        manifest, digest, version = codec.parse(paths[0])
        if digest != description.digest:
            raise RecordError("the manifest has another digest than its model")
        listed = dict(zip(_listed_files(manifest), paths[1:], strict=True))
        max_characters = manifest.max_tokens * settings.max_characters_per_token
        tokenizer = Tokenizer(listed[bundle.TOKENIZER], manifest.max_tokens, max_characters)
        novelty = None
        if manifest.novelty is not None:
            novelty = read_novelty(manifest.novelty, manifest.embedding.dimensions, listed[bundle.NOVELTY])
    except (bundle.BundleError, StartupError, ValueError) as error:
        raise RecordError(str(error)) from error
    finally:
        files.close()
    runtime = Runtime(description.engine, description.device, description.variant)
    source = bundle.Bundle(settings.bundle, manifest, digest, version)
    reasons = tuple(description.fallback_reasons)
    return Model(source, tokenizer, RemoteEngine(runtime), reasons, description.max_batch_tokens, novelty=novelty)


def same_model(one: Model, other: Model) -> bool:
    """Returns whether two models give the same answers: the same bundle, computed in the same way."""
    return (one.source.digest, one.engine.runtime) == (other.source.digest, other.engine.runtime)


def output_sizes(manifest: bundle.Manifest) -> list[int]:
    """Returns how many values each part of the model's output has: the embedding, logits and probabilities by head."""
    heads = manifest.heads
    return [manifest.embedding.dimensions, *(head.width for head in heads), *map(numbers_of, heads)]


def _describe(text: bytes) -> _Description:
    try:
        values: dict[str, Any] = json.loads(text)
        description = _Description(**values)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"the description of a model is not valid: {error}") from error
    return description


def _listed_files(manifest: bundle.Manifest) -> list[str]:
    """Returns the files of the manifest that a front reads."""
    return [bundle.TOKENIZER, *([bundle.NOVELTY] if manifest.novelty is not None else [])]


def _sealed(name: str, data: bytes) -> int:
    fd = os.memfd_create(f"polyhead-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL_ALL)
    return fd

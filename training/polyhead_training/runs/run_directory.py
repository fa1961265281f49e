"""Run directories: written atomically, and loaded by the export.

::

    run.json         name, heads with their ordered labels, the resolved configuration, versions
    model/           config.json and model.safetensors
    tokenizer.json   padding and truncation off
    metrics.jsonl    one JSON object per line for each logged step and each epoch
    data.json        data quality report
    evaluation.json  scores by split and head
    report.html      training report
    README.md        the model card
    repeats.json     with --seeds or --folds, the scores of every run, their mean and their spread
    label_noise.json with --folds, rows whose label is likely a mistake
    collected.json   with collected rows, the accuracy of the model that served and of this one
    novelty.npy      centroids and directions of the training texts' embeddings, unless training.novelty is off
    out_of_fold.jsonl with --folds, the prediction for each training row by a model that was trained without it
    trackers/        files of the configured trackers
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polyhead_bundle.atomic_directory import replace_directory, staging_folder
from tokenizers import Tokenizer

from polyhead_training.config import Config
from polyhead_training.errors import RunError
from polyhead_training.model import PolyheadModel, load_model
from polyhead_training.model_config import HeadConfig

FORMAT_VERSION = 1
METRICS_NAME = "metrics.jsonl"
DATA_NAME = "data.json"
REPORT_NAME = "report.html"
CARD_NAME = "README.md"
TRACKERS_NAME = "trackers"
EVALUATION_NAME = "evaluation.json"
REPEATS_NAME = "repeats.json"
LABEL_NOISE_NAME = "label_noise.json"
OUT_OF_FOLD_NAME = "out_of_fold.jsonl"
NOVELTY_NAME = "novelty.npy"
COLLECTED_NAME = "collected.json"
RUN_NAME = "run.json"
_MODEL_NAME = "model"
_TOKENIZER_NAME = "tokenizer.json"
_RUN_FILES = frozenset(
    {
        RUN_NAME,
        _TOKENIZER_NAME,
        METRICS_NAME,
        DATA_NAME,
        EVALUATION_NAME,
        REPORT_NAME,
        CARD_NAME,
        TRACKERS_NAME,
        REPEATS_NAME,
        LABEL_NOISE_NAME,
        OUT_OF_FOLD_NAME,
        NOVELTY_NAME,
        COLLECTED_NAME,
        _MODEL_NAME,
        f"{_MODEL_NAME}/config.json",
        f"{_MODEL_NAME}/model.safetensors",
    }
)
_PACKAGES = ("accelerate", "polyhead", "safetensors", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Run:
    """A loaded run directory.

    Attributes:
        path: The directory.
        content: The content of ``run.json``.
        model: The model, in evaluation mode, on the CPU.
    """

    path: Path
    content: dict[str, Any]
    model: PolyheadModel

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self.content["name"])

    @property
    def heads(self) -> list[dict[str, Any]]:
        """The heads, in order, each with ``name``, ``kind``, ``labels``, ``temperature`` and ``threshold(s)``."""
        return list(self.content["heads"])

    @property
    def prefix(self) -> str:
        """Text that was put before the text of every labelled row."""
        name = self.content["config"].get("data", {}).get("prompt")
        return self.model.config.prompts[name] if name else ""

    @property
    def tokenizer_path(self) -> Path:
        """Path of ``tokenizer.json``."""
        return self.path / _TOKENIZER_NAME


@contextmanager
def staged_run(destination: Path) -> Iterator[Path]:
    """Opens a staging folder that becomes ``destination`` if the block succeeds and is deleted if it raises.

    Args:
        destination: The run directory. An existing run directory is replaced if it contains only the files of a run;
            any other directory is an error.

    Yields:
        An empty folder beside ``destination``.

    Raises:
        RunError: ``destination`` exists and is not a run directory, or its parent is not writable.
    """
    # Resolved because the target of a link is what gets replaced, and because "." has no name.
    target = destination.resolve()
    require_replaceable(target)
    with ExitStack() as stack:
        try:
            staging = stack.enter_context(staging_folder(target))
        except OSError as error:
            raise RunError(target, f"cannot be written: {error.strerror}. Choose another --output-dir") from None
        yield staging
        # Checked again: files may have appeared there while training took hours.
        require_replaceable(target)
        replace_directory(staging, target)


def write_run(
    folder: Path,
    config: Config,
    heads: Sequence[HeadConfig],
    model: PolyheadModel,
    tokenizer: Tokenizer,
    *,
    temperatures: Mapping[str, float] = {},
    thresholds: Mapping[str, float | Sequence[float] | None] = {},
    promises: Mapping[str, Mapping[str, Any]] = {},
    prediction_sets: Mapping[str, Mapping[str, Any]] = {},
    novelty: tuple[Mapping[str, Any], NDArray[np.float16]] | None = None,
    reference: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] = {},
) -> None:
    """Writes the files that the export requires: ``run.json``, the model, the tokenizer.

    Args:
        folder: A folder from ``staged_run``.
        config: The configuration.
        heads: The heads with their labels.
        model: The model.
        tokenizer: Its tokenizer, with padding and truncation off.
        temperatures: Divisors of the heads' logits, by head name. Default: 1.
        thresholds: Minimum probability of the second label of a sigmoid head and of each label of a multilabel head, by
            head name. Default: 0.5.
        promises: What heads that abstain promise, as in ``evaluation.selective.Promise``, by head name.
        prediction_sets: What decides the prediction sets of heads that have them, as in
            ``evaluation.prediction_sets.PredictionSets``, by head name.
        novelty: Numbers and matrix of the novelty of texts, as in ``evaluation.novelty.NoveltyModel``; None for none.
        reference: What the model reads and answers on its validation texts, as in ``evaluation.reference``.
        identity: Inputs of the run besides the configuration.
    """
    if novelty is not None:
        np.save(folder / NOVELTY_NAME, novelty[1], allow_pickle=False)
    model.save_pretrained(folder / _MODEL_NAME)
    tokenizer.save(str(folder / _TOKENIZER_NAME))
    write_json(
        folder / RUN_NAME,
        {
            "format_version": FORMAT_VERSION,
            "name": config.name,
            "heads": [
                {
                    "name": head.name,
                    "kind": head.kind,
                    "labels": list(head.labels or ()),
                    "temperature": temperatures.get(head.name, 1.0),
                    "threshold": thresholds.get(head.name, 0.5) if head.kind == "sigmoid" else None,
                    "thresholds": _each_threshold(head, thresholds.get(head.name)),
                    **({"abstention": promises[head.name]} if head.name in promises else {}),
                    **({"prediction_sets": prediction_sets[head.name]} if head.name in prediction_sets else {}),
                }
                for head in heads
            ],
            "novelty": None if novelty is None else novelty[0],
            "reference": reference,
            "config": config.model_dump(mode="json"),
            **identity,
            "built_with": {"python": platform.python_version(), **installed_versions(_PACKAGES)},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _each_threshold(head: HeadConfig, threshold: float | Sequence[float] | None) -> list[float] | None:
    """Returns the threshold of each label of a multilabel head; None for other heads."""
    if head.kind != "multilabel":
        return None
    return list(threshold) if isinstance(threshold, Sequence) else [threshold or 0.5] * len(head.labels or ())


def write_json(path: Path, content: object) -> None:
    """Writes indented JSON in UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def stored_identity(destination: Path, keys: Iterable[str]) -> dict[str, Any] | None:
    """Returns the identity of the complete run in a directory; None if there is none.

    Args:
        destination: The run directory.
        keys: Keys of the identity; the value of a key that the run lacks is None.
    """
    try:
        content = _read_content(destination)
    except RunError:
        return None
    return {key: content.get(key) for key in keys}


def load_run(path: Path) -> Run:
    """Loads a run directory.

    Args:
        path: A directory that ``polyhead-train`` wrote.

    Raises:
        RunError: It is not a run directory, has an unknown format version, or one of its files is missing or damaged.
    """
    content = _read_content(path)
    if not (path / _TOKENIZER_NAME).is_file():
        raise RunError(path / _TOKENIZER_NAME, "is missing; train again")
    folder = path / _MODEL_NAME
    try:
        model = load_model(folder)
    # Each library has its own exception classes for damaged files.
    except Exception as error:
        raise RunError(folder, f"cannot be loaded ({error}); train again") from error
    return Run(path=path, content=content, model=model)


def require_replaceable(destination: Path) -> None:
    """Rejects a destination with files that training did not write, because replacing it would delete them.

    Args:
        destination: The future run directory, with links resolved.

    Raises:
        RunError: The destination exists and is not a run directory, or contains other files.
    """
    if not destination.exists():
        return
    hint = "it was left untouched. Choose another --output-dir"
    if not (destination / RUN_NAME).is_file():
        raise RunError(destination, f"exists and is not a run directory; {hint}")
    names = {path.relative_to(destination).as_posix() for path in destination.rglob("*")}
    names = {name for name in names if not name.startswith(f"{TRACKERS_NAME}/")}
    if unexpected := sorted(names - _RUN_FILES):
        raise RunError(destination, f"contains {unexpected[0]!r}, which is not part of a run; {hint}")


def _read_content(path: Path) -> dict[str, Any]:
    file = path / RUN_NAME
    try:
        content = json.loads(file.read_bytes())
    except OSError:
        raise RunError(path, f"is not a run directory: it has no {RUN_NAME}; polyhead-train writes one") from None
    except ValueError as error:
        raise RunError(file, f"is not valid JSON: {error}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise RunError(file, f"has format_version {version!r}; this release requires {FORMAT_VERSION}: train again")
    missing = [key for key in ("name", "heads", "config") if key not in content]
    if missing:
        raise RunError(file, f"has no field {missing[0]!r}; train again")
    return dict(content)


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns the version of each package that is installed; polyhead itself may run from its source."""
    installed = {}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed

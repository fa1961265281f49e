"""Fixtures of the training tests: tiny random checkpoints of each family and configurations for them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from polyhead_training.config import Config
from polyhead_training.config_file import read_config

from tests.support import tiny_training
from tests.support.finished_run import write_finished_run
from tests.support.tiny_checkpoints import WRITERS

WriteConfig = Callable[..., Config]


@pytest.fixture(scope="module", autouse=True)
def single_thread() -> Iterator[None]:
    """Limits torch to one thread: tiny models would spend most of their time on waking threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def frozen_modules() -> Iterator[None]:
    """Exempts the imported modules from garbage collection, which accelerate triggers in every stage of a run."""
    gc.freeze()
    yield
    # Tests of other folders in this process may look for what is not collected.
    gc.unfreeze()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random checkpoints by family: hidden size 32, two layers, 40 usable positions."""
    torch.manual_seed(0)
    folders = {}
    for family, write in WRITERS.items():
        folders[family] = tmp_path_factory.mktemp(family)
        write(folders[family])
    return folders


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """24 labelled rows in six classes."""
    return copy.deepcopy(tiny_training.ROWS)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[[str, Sequence[object]], Path]:
    """Returns a function that writes rows as a JSONL file into the test's folder."""
    return lambda name, rows: tiny_training.write_jsonl(tmp_path / name, rows)


@pytest.fixture
def config_file(tmp_path: Path, checkpoints: dict[str, Path]) -> Path:
    """A small configuration on the tiny BERT, with training and test rows in the same folder."""
    return tiny_training.write_config(tmp_path, checkpoints["bert"])


@pytest.fixture
def configure(config_file: Path) -> WriteConfig:
    """Returns a function that reads the small configuration with overrides."""

    def read(*overrides: str) -> Config:
        return read_config(config_file, overrides)

    return read


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """A finished run without a model, with hostile texts in its data."""
    return write_finished_run(tmp_path)


@pytest.fixture
def new_process_state() -> Iterator[None]:
    """Resets the precision of earlier tests: accelerate keeps one per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)

"""Checkpoints are replaced atomically."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from polyhead_training.runs.checkpoint import Progress, load_last, save_last


def test_checkpoint_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, accelerator = torch.nn.Linear(2, 2), Accelerator(cpu=True)
    save_last(tmp_path, Progress(steps=1), module, None, accelerator)

    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polyhead_training.runs.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_last(tmp_path, Progress(steps=2), module, None, accelerator)
    found = load_last(tmp_path, module)
    assert found is not None
    assert found.steps == 1


def test_folder_without_a_checkpoint_has_no_progress(tmp_path: Path) -> None:
    assert load_last(tmp_path, torch.nn.Linear(2, 2)) is None

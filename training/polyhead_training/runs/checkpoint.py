"""Checkpoints of a run in progress: one file each, replaced atomically, so a crash leaves the previous one intact.

::

    RUN_DIR.in_progress/last.safetensors   weights, their average, optimizer, random states, progress: the state that
                                           --resume restores
    RUN_DIR.in_progress/best.safetensors   the weights of the best epoch so far
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import Accelerator
from polyhead_bundle.atomic_directory import sync
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from polyhead_training.errors import ResumeError

LAST_NAME = "last.safetensors"
BEST_NAME = "best.safetensors"
_MODULE = "module."
_OPTIMIZER = "optimizer."
_AVERAGE = "average."
_RANDOM = "random."
_PROGRESS = "progress"


@dataclass
class Progress:
    """Progress of a run.

    Attributes:
        stage: Number of completed stages.
        stage_step: Completed steps of the current stage.
        steps: Completed steps of the run.
        best: Highest mean macro-F1 of the heads on validation after an epoch; None before the first.
        seconds: Time spent training, in seconds.
        metrics_bytes: Size of the metrics file.
        scaler: State of the gradient scaler, for fp16.
    """

    stage: int = 0
    stage_step: int = 0
    steps: int = 0
    best: float | None = None
    seconds: float = 0.0
    metrics_bytes: int = 0
    scaler: dict[str, float] | None = None


def save_last(  # noqa: PLR0917
    folder: Path,
    progress: Progress,
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    accelerator: Accelerator,
    average: Sequence[Tensor] = (),
) -> None:
    """Writes the state that a resumed run requires. Every process must call it; the main process writes.

    Args:
        folder: The run's folder.
        progress: Progress of the run.
        module: The module with all trained weights.
        optimizer: The optimizer of the current stage; None between stages.
        accelerator: The processes, whose random states are saved too.
        average: The averaged weights of the current stage.
    """
    tensors = {_MODULE + name: tensor for name, tensor in module.state_dict().items()}
    tensors |= _optimizer_tensors(optimizer) if optimizer else {}
    tensors |= {f"{_AVERAGE}{number}": tensor for number, tensor in enumerate(average)}
    for name, state in _random_states(accelerator).items():
        tensors[_RANDOM + name] = accelerator.gather(state[None].to(accelerator.device))  # (processes, bytes)
    if accelerator.is_main_process:
        save_tensors(folder / LAST_NAME, tensors, {_PROGRESS: json.dumps(asdict(progress))})


def load_last(folder: Path, module: nn.Module) -> Progress | None:
    """Reads the progress and the weights of the last checkpoint.

    Args:
        folder: The run's folder.
        module: The module of ``save_last``; the call loads the weights into it.

    Returns:
        The progress; None if there is no checkpoint yet.

    Raises:
        ResumeError: The checkpoint is damaged, or belongs to another model.
    """
    path = folder / LAST_NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(_MODULE)]  # noqa: SIM118 - not a dictionary
            module.load_state_dict({name.removeprefix(_MODULE): file.get_tensor(name) for name in names})
            return Progress(**json.loads((file.metadata() or {})[_PROGRESS]))
    except (SafetensorError, RuntimeError, OSError, KeyError, TypeError, ValueError) as error:
        raise ResumeError(path, f"cannot be read ({error}); start again with --restart") from error


def restore_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Loads the optimizer state of the last checkpoint into an optimizer."""
    with safe_open(folder / LAST_NAME, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            if name.startswith(_OPTIMIZER):
                number, key = name.removeprefix(_OPTIMIZER).split(".")
                parameter = _parameters(optimizer)[int(number)]
                optimizer.state[parameter][key] = file.get_tensor(name).to(parameter.device)


def restore_average(folder: Path, average: Sequence[Tensor]) -> None:
    """Loads the averaged weights of the last checkpoint into the average of the current stage."""
    with safe_open(folder / LAST_NAME, framework="pt") as file:
        for number, tensor in enumerate(average):
            tensor.copy_(file.get_tensor(f"{_AVERAGE}{number}"))


def restore_random_states(folder: Path, accelerator: Accelerator) -> None:
    """Restores this process's random number generators to their states at the last checkpoint."""
    with safe_open(folder / LAST_NAME, framework="pt") as file:
        for name in _random_states(accelerator):
            state = file.get_tensor(_RANDOM + name)[accelerator.process_index]
            if name == "cpu":
                torch.set_rng_state(state)
            else:
                torch.cuda.set_rng_state(state, accelerator.device)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file durably, and replaces an existing one atomically."""
    partial = path.with_name(path.name + ".partial")
    # The library creates files that only their owner may read. The umask decides the mode of this one.
    partial.unlink(missing_ok=True)
    partial.touch()
    mode = partial.stat().st_mode
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial, metadata)
    partial.chmod(mode)
    replace_file(partial, path)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for writing that durably takes the place of another one if the block succeeds."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        yield stream
    replace_file(partial, path)


def replace_file(partial: Path, path: Path) -> None:
    """Renames a file to its final name after its content has reached the disk."""
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[Any, dict[str, Tensor]] = optimizer.state
    return {
        f"{_OPTIMIZER}{number}.{key}": value
        for number, parameter in enumerate(_parameters(optimizer))
        # A parameter that has not trained yet has no state.
        for key, value in state.get(parameter, {}).items()
    }


def _random_states(accelerator: Accelerator) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return states

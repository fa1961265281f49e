"""Systems that learn a head: polyhead's trainer, scikit-learn on frozen embeddings, and transformers' Trainer.

::

    Task --system--> Learned: logits of validation and test, seconds of the training
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from numpy.typing import NDArray
from polyhead_training.data.collation import EncodedRows
from polyhead_training.evaluation.scoring import quick_score
from polyhead_training.model import PolyheadModel
from polyhead_training.model_types import SELECTION
from polyhead_training.predict import embed, predict
from polyhead_training.runs.run_directory import load_run
from polyhead_training.terminal import discard
from polyhead_training.tokenization import pad
from polyhead_training.train import build_model, train
from polyhead_training.training_config import StageConfig
from scipy import special
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments, set_seed

from .head_tasks import HEAD, Logits, Task, as_ordinal_logits, number_as_ordinal_logits

SPLITS = ("validation", "test")
_BATCH_SIZE = 32
# Inverse penalties of the logistic regression and penalties of the ridge regression; validation chooses.
_INVERSE_PENALTIES = (1.0, 10.0)
_PENALTIES = (0.1, 1.0, 10.0)
_FROZEN_STAGE = StageConfig(name="heads", train=("heads", "pooling"), epochs=10, learning_rate=1e-3)


class Learned(NamedTuple):
    """Outputs of a trained system.

    Attributes:
        logits: (N, outputs) of ``validation`` and ``test``.
        seconds: Seconds of the training, without its evaluation.
    """

    logits: Mapping[str, Logits]
    seconds: float


def fine_tune(task: Task, work_dir: Path) -> tuple[PolyheadModel, float]:
    """Trains with polyhead, as the configuration says; returns the model and the seconds of the training."""
    run = work_dir / "run"
    train(task.config, run, data=task.data, policy="restart", report=discard)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    model = load_run(run).model
    shutil.rmtree(run)
    return model, json.loads(lines[-1])["seconds"]


def head_logits(model: PolyheadModel, rows: EncodedRows) -> Logits:
    """Returns the (rows, outputs) logits of the head."""
    return predict(model, rows, _BATCH_SIZE, _cpu())[HEAD]


def fine_tuned(task: Task, work_dir: Path) -> Learned:
    """Trains all weights with polyhead."""
    model, seconds = fine_tune(task, work_dir)
    return Learned({split: head_logits(model, task.prepared.splits[split]) for split in SPLITS}, seconds)


def frozen(task: Task, work_dir: Path) -> Learned:
    """Trains the pooling and the head with polyhead, on the frozen backbone."""
    training = task.config.training.model_copy(update={"stages": (_FROZEN_STAGE,)})
    return fine_tuned(Task(task.kind, task.config.model_copy(update={"training": training}), task.data), work_dir)


def logistic_regression(task: Task, _: Path) -> Learned:
    """Fits scikit-learn's logistic regression, one against the rest for several labels, on frozen embeddings."""

    def fit(inputs: Any, targets: Any, inverse_penalty: float) -> Callable[[Any], Logits]:
        found = LogisticRegression(C=inverse_penalty, max_iter=1000)
        if task.kind == "multilabel":
            rest = OneVsRestClassifier(found).fit(inputs, targets)
            return rest.decision_function  # type: ignore[no-any-return]
        found.fit(inputs, targets)
        if task.kind == "ordinal":
            return lambda others: as_ordinal_logits(found.predict_proba(others))
        return lambda others: np.atleast_2d(found.decision_function(others).T).T

    return _fitted(task, fit, _INVERSE_PENALTIES)


def ridge_regression(task: Task, _: Path) -> Learned:
    """Fits scikit-learn's ridge regression of the numbers on frozen embeddings."""

    def fit(inputs: Any, targets: Any, penalty: float) -> Callable[[Any], Logits]:
        numbers = np.array([float(label) for label in task.labels])[targets] if task.labels else targets
        found = Ridge(alpha=penalty).fit(inputs, numbers)
        if task.kind == "ordinal":
            return lambda others: number_as_ordinal_logits(found.predict(others), task.labels)
        return lambda others: found.predict(others)[:, None]

    return _fitted(task, fit, _PENALTIES)


def transformers_trainer(task: Task, _: Path) -> Learned:
    """Fine-tunes with transformers' Trainer: backbone, data, epochs, batch size and rate of the configuration.

    An ordinal head is a classifier here, and a regression head learns the numbers as they are.
    """
    training, stage = task.config.training, task.config.training.stages[-1]
    set_seed(training.seed)
    problem = {"multilabel": "multi_label_classification", "regression": "regression"}.get(
        task.kind, "single_label_classification"
    )
    outputs = 1 if task.kind == "regression" else len(task.labels)
    model = AutoModelForSequenceClassification.from_pretrained(
        task.prepared.backbone.folder, num_labels=outputs, problem_type=problem, dtype=torch.float32
    )
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=stage.epochs,
            per_device_train_batch_size=training.batch_size,
            per_device_eval_batch_size=_BATCH_SIZE,
            learning_rate=stage.learning_rate,
            warmup_steps=training.warmup,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            bf16=training.mixed_precision == "bf16",
            train_sampling_strategy="group_by_length",
            seed=training.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        rows = {split: _as_dataset(task, split) for split in ("train", *SPLITS)}
        collate = _Collator(task.prepared.backbone.pad_token_id)
        trainer = Trainer(model=model, args=arguments, train_dataset=rows["train"], data_collator=collate)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        # The Trainer also predicts in the order of its sampler.
        arguments.train_sampling_strategy = "sequential"
        logits = {split: trainer.predict(rows[split]).predictions for split in SPLITS}
    if task.kind == "ordinal":
        logits = {split: as_ordinal_logits(special.softmax(found, axis=1)) for split, found in logits.items()}
    if task.kind == "sigmoid":
        logits = {split: found[:, 1:] - found[:, :1] for split, found in logits.items()}
    return Learned(logits, seconds)


SYSTEMS: Mapping[str, Callable[[Task, Path], Learned]] = {
    "fine-tuned": fine_tuned,
    "frozen backbone": frozen,
    "logistic regression": logistic_regression,
    "ridge regression": ridge_regression,
    "transformers Trainer": transformers_trainer,
}


def systems_of(kind: str) -> list[str]:
    """Returns the systems that can learn a kind of head."""
    without = {"regression": {"logistic regression"}, "ordinal": set[str]()}.get(kind, {"ridge regression"})
    return [name for name in SYSTEMS if name not in without]


def _fitted(
    task: Task, fit: Callable[[Any, Any, float], Callable[[Any], Logits]], penalties: Sequence[float]
) -> Learned:
    """Fits with each penalty on frozen embeddings, and returns the outputs of the one that is best on validation."""
    began = time.perf_counter()
    vectors = _frozen_embeddings(task)
    best: tuple[float, Callable[[Any], Logits]] | None = None
    for penalty in penalties:
        function = fit(vectors["train"], task.targets("train"), penalty)
        metrics = quick_score(task.kind, list(task.labels), function(vectors["validation"]), task.targets("validation"))
        quality = metrics[SELECTION[task.kind]] or 0.0
        if best is None or quality > best[0]:
            best = quality, function
    seconds = time.perf_counter() - began
    assert best is not None  # noqa: S101
    return Learned({split: best[1](vectors[split]) for split in SPLITS}, seconds)


def _frozen_embeddings(task: Task) -> dict[str, NDArray[np.float32]]:
    model = build_model(task.config, task.prepared.backbone, ())
    return {split: embed(model, rows, _BATCH_SIZE, _cpu()) for split, rows in task.prepared.splits.items()}


class _Collator:
    """Pads rows to the longest of a batch."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = pad([row["input_ids"] for row in rows], self._pad_token_id)
        labels = torch.stack([torch.as_tensor(row["labels"]) for row in rows])
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask), "labels": labels}


def _as_dataset(task: Task, split: str) -> Any:
    rows: EncodedRows = task.prepared.splits[split]
    targets = task.targets(split)
    # The loss of several labels compares numbers.
    labels = targets.astype(np.float32) if task.kind in ("multilabel", "regression") else targets
    return Dataset.from_dict({"input_ids": rows.ids, "labels": labels.tolist()})


def _cpu() -> Accelerator:
    return Accelerator(cpu=True)

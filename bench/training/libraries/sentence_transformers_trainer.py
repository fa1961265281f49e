"""Trains an embedding with sentence-transformers' trainer: SCRIPT FOLDER, with FOLDER/task.json.

Runs in the environment of ``bench.training.install_libraries``. Writes FOLDER/after.npy, the embeddings of the task's
texts after training, and FOLDER/seconds.json, the seconds of the training.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer


def main(folder: Path) -> None:
    """Trains, and embeds the texts."""
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    transformer = Transformer(task["backbone"], max_seq_length=task["max_tokens"])
    model = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_word_embedding_dimension())], device="cpu"
    )
    datasets = {source["name"]: _dataset(source) for source in task["sources"]}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "output"),
        num_train_epochs=task["epochs"],
        per_device_train_batch_size=task["batch_size"],
        learning_rate=task["learning_rate"],
        warmup_steps=task["warmup"],
        weight_decay=task["weight_decay"],
        max_grad_norm=task["max_grad_norm"],
        seed=task["seed"],
        save_strategy="no",
        report_to="none",
        bf16=task["bf16"],
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets,
        loss={source["name"]: _loss(model, source, task) for source in task["sources"]},
    )
    began = time.perf_counter()
    trainer.train()
    (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - began), encoding="utf-8")
    np.save(folder / "after.npy", model.encode(task["texts"], batch_size=32, show_progress_bar=False))


def _dataset(source: dict[str, Any]) -> Any:
    columns = dict(zip(("anchor", "positive", "negative"), zip(*source["texts"], strict=True), strict=False))
    found = {name: list(texts) for name, texts in columns.items()}
    return Dataset.from_dict(found if "ranking" in source["loss"] else {**found, "score": source["scores"]})


def _loss(model: Any, source: dict[str, Any], task: dict[str, Any]) -> Any:
    kinds: dict[str, Any] = {
        "cosent": losses.CoSENTLoss,
        "cosine": losses.CosineSimilarityLoss,
        "ranking": losses.MultipleNegativesRankingLoss,
        "symmetric_ranking": partial(
            losses.MultipleNegativesRankingLoss,
            directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        ),
    }
    found = kinds[source["loss"]](model)
    if not task["matryoshka"]:
        return found
    size = model.get_embedding_dimension()
    sizes = sorted({size, *task["matryoshka"]}, reverse=True)
    return losses.MatryoshkaLoss(model, found, sizes, [1 / len(sizes)] * len(sizes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

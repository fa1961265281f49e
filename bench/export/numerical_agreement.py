"""Numerical agreement of PyTorch, onnxruntime and the server on every text of a file.

    python -m bench.export.numerical_agreement build/demo/bundle training/demo/test.jsonl --label label
    python -m bench.export.numerical_agreement build/demo/bundle texts.txt.gz --engines onnx --output agreement.json

The reference for each text is the trained model in PyTorch, in fp32, one text at a time. For each engine a server
receives the whole file from the `polyhead` command over one stream, and then each text in a call of its own, so that
it is computed alone. The output has the label disagreements, the largest absolute differences of any number, and the
accuracy where the file has labels.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import torch
from numpy.typing import NDArray
from polyhead_client import Answer, Client
from polyhead_training.model import PolyheadModel
from polyhead_training.tokenization import encode, load_tokenizer
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.servers import BIN, serving
from bench.harness.texts import FORMAT_HELP, read

Rows = NDArray[np.float32]  # (texts, dimensions + labels + 1)


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("bundle", type=Path, help="bundle to serve")
    parser.add_argument("data", type=Path, help=FORMAT_HELP)
    parser.add_argument("--label", metavar="FIELD", help="field with the name of the class")
    parser.add_argument("--sentiment", metavar="FIELD", help="field with 0 or 1")
    parser.add_argument(
        "--engines", nargs="+", default=["onnx", "torch"], help="engines to serve (default: onnx torch)"
    )
    add_output_flag(parser)
    arguments = parser.parse_args()
    rows = read(arguments.data)
    manifest = bundle.load(arguments.bundle).manifest
    texts = [row["text"] for row in rows]
    reference = trained_model(arguments.bundle, manifest, texts)
    report: dict[str, Any] = {**results.provenance(), "data": arguments.data.name, "rows": len(rows)}
    report["accuracy"] = accuracies(manifest, reference, rows, arguments.label, arguments.sentiment)
    for engine in arguments.engines:
        with serving(arguments.bundle, "--engine", engine) as target:
            streamed, seconds = send_as_stream(target, manifest, texts)
            single = send_one_by_one(target, manifest, texts)
        report[engine] = {
            "label_disagreements": label_disagreements(manifest, reference, streamed),
            "max_difference_from_torch": max_difference(reference, streamed),
            "max_difference_single_vs_batched": max_difference(single, streamed),
            "stream_seconds": round(seconds, 1),
        }
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)


def trained_model(path: Path, manifest: bundle.Manifest, texts: Sequence[str]) -> Rows:
    """Returns the reference: every text alone through PyTorch."""
    # A single text is too small to split between threads.
    torch.set_num_threads(1)
    model = PolyheadModel.from_pretrained(path / "torch").eval()
    rows = []
    for ids in tqdm(encode(load_tokenizer(path / "tokenizer.json"), texts, manifest.max_tokens), "torch", len(texts)):
        with torch.inference_mode():
            outputs = model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))
        parts = [outputs.sentence_embedding]
        for head in manifest.heads:
            logits = outputs.logits[head.name] / head.temperature  # (1, outputs)
            parts.append(torch.softmax(logits, -1) if head.kind == "softmax" else torch.sigmoid(logits))
        rows.append(torch.cat(parts, dim=-1)[0].numpy())
    return np.stack(rows)


def send_as_stream(target: str, manifest: bundle.Manifest, texts: Sequence[str]) -> tuple[Rows, float]:
    """Returns the answers of the ``polyhead`` command, and its duration in seconds."""
    requests = "".join(json.dumps({"id": str(index), "text": text}) + "\n" for index, text in enumerate(texts))
    command = [str(BIN / "polyhead"), "analyze", "--target", target, "--jsonl"]
    start = time.perf_counter()
    answers = subprocess.run(command, input=requests.encode(), stdout=subprocess.PIPE, check=True).stdout
    seconds = time.perf_counter() - start
    documents = [json.loads(line) for line in answers.decode().splitlines()]
    if [one["id"] for one in documents] != [str(index) for index in range(len(texts))]:
        raise SystemExit("the stream lost, doubled or reordered answers")
    return np.stack([_row_of_json(manifest, one) for one in documents]), seconds


def _row_of_json(manifest: bundle.Manifest, answer: dict[str, Any]) -> NDArray[np.float32]:
    by_label = {score["label"]: score["probability"] for score in answer["classification"]["scores"]}
    topic = next(head for head in manifest.heads if head.kind == "softmax")
    scores = [by_label[label] for label in topic.labels]
    return np.array([*answer["embedding"], *scores, answer["sentiment"]["probability"]], dtype=np.float32)


def send_one_by_one(target: str, manifest: bundle.Manifest, texts: Sequence[str]) -> Rows:
    """Sends each text in a call of its own, sequentially, so that no batch forms."""
    with Client(target) as client:
        answers: Iterable[Answer] = (client.analyze([text])[0] for text in texts)
        return np.stack([_row_of_answer(manifest, one) for one in tqdm(answers, "one by one", len(texts))])


def _row_of_answer(manifest: bundle.Manifest, answer: Answer) -> NDArray[np.float32]:
    result = answer.unwrap()
    if result.embedding is None or result.classification is None or result.sentiment is None:
        raise SystemExit("an answer lacks one of the tasks")
    by_label = {score.label: score.probability for score in result.classification.scores}
    topic = next(head for head in manifest.heads if head.kind == "softmax")
    scores = [by_label[label] for label in topic.labels]
    return np.array([*result.embedding, *scores, result.sentiment.probability], dtype=np.float32)


def max_difference(left: Rows, right: Rows) -> float:
    """Returns the largest absolute difference of any number of any row."""
    return float(np.abs(left - right).max())


def predictions(manifest: bundle.Manifest, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns the class index and whether the sentiment is positive, for each row."""
    threshold = next(head.threshold for head in manifest.heads if head.kind == "sigmoid")
    return rows[:, manifest.embedding.dimensions : -1].argmax(axis=1), rows[:, -1] >= (threshold or 0.5)


def label_disagreements(manifest: bundle.Manifest, left: Rows, right: Rows) -> int:
    """Counts the rows whose class or sentiment differs."""
    pairs = zip(predictions(manifest, left), predictions(manifest, right), strict=True)
    return int(np.logical_or(*(one != other for one, other in pairs)).sum())


def accuracies(
    manifest: bundle.Manifest, rows: Rows, truth: Sequence[dict[str, Any]], label: str | None, sentiment: str | None
) -> dict[str, float]:
    """Returns the accuracy of each head for which the file has labels."""
    classes, positive = predictions(manifest, rows)
    labels = next(head.labels for head in manifest.heads if head.kind == "softmax")
    found: dict[str, float] = {}
    if label:
        found[label] = float(np.mean([labels[one] == row[label] for one, row in zip(classes, truth, strict=True)]))
    if sentiment:
        found[sentiment] = float(np.mean([one == row[sentiment] for one, row in zip(positive, truth, strict=True)]))
    return found


if __name__ == "__main__":
    main()

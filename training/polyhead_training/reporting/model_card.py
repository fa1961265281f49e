"""The model card of a run: intended use, heads, data, evaluation, limits and usage, in Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyhead_training.measures import measures_of, metric_tables, show
from polyhead_training.runs.run_directory import CARD_NAME

from .embedding_table import HEADER, embedding_rows
from .results import Results, implausible, read_results

# Weakest labels listed per head; the training report lists all.
_MAX_WEAK_LABELS = 5
_USAGE = """\
## Usage

In PyTorch, with the folder of this card as `run`:

```python
from pathlib import Path

import polyhead_training.model  # registers the model class with transformers
import torch
from polyhead_training.tokenization import encode, load_tokenizer, pad
from transformers import AutoModel

model = AutoModel.from_pretrained("run/model").eval()
tokenizer = load_tokenizer(Path("run/tokenizer.json"))
ids = list(encode(tokenizer, ["The parcel came two days early."], model.config.max_tokens))
with torch.inference_mode():
    outputs = model(*map(torch.from_numpy, pad(ids, model.config.pad_token_id)))
print(outputs.sentence_embedding, outputs.logits)
```

The logits are uncalibrated: divide them by the head's temperature before the softmax or the sigmoid, as the server
does. The output of a regression head is its value. To export the model to ONNX, verify it and serve it:

```
polyhead-export run bundle
polyhead-serve bundle
polyhead analyze "The parcel came two days early."
```"""


def write_card(folder: Path) -> None:
    """Writes ``README.md`` into a run directory.

    Args:
        folder: The run's files; ``data.json`` may be missing.

    Raises:
        RunError: A file is missing or damaged.
    """
    (folder / CARD_NAME).write_text(render_card(read_results(folder)), encoding="utf-8")


def render_card(results: Results) -> str:
    """Renders the card as Markdown with the front matter of the Hugging Face hub."""
    sections = [
        _front_matter(results),
        _introduction(results),
        _heads(results.heads),
        prompts(results.run["config"]["model"].get("prompts", {}), results.run["config"]["data"].get("prompt")),
        _data(results),
        figures(results.splits, results.similarity, results.retrieval),
        _calibration(results),
        abstentions({head["name"]: head["abstention"] for head in results.heads if head.get("abstention")}),
        prediction_sets(
            {head["name"]: head["prediction_sets"] for head in results.heads if head.get("prediction_sets")}
        ),
        _limits(results),
    ]
    return "\n\n".join(["\n".join(lines) for lines in sections if lines] + [_USAGE]) + "\n"


def figures(
    splits: Mapping[str, Mapping[str, Any]],
    similarity: Mapping[str, Any] | None,
    retrieval: Mapping[str, Any] | None = None,
) -> list[str]:
    """Formats the evaluation section; a head without labels in a split is omitted.

    Args:
        splits: Evaluations of ``evaluation.json`` by split and head name.
        similarity: Evaluation of the sentence embedding, if any.
        retrieval: Evaluation of retrieval with the sentence embedding, by task.

    Returns:
        Lines of Markdown; none without metrics.
    """
    lines = []
    known = {split: {name: found for name, found in heads.items() if found["rows"]} for split, heads in splits.items()}
    notes = {tuple(one.keys): one.note for heads in known.values() for one in map(measures_of, heads.values())}
    for titles, rows in metric_tables(known):
        named = [[split, code(head), *values] for split, head, *values in rows]
        note = f"Brackets: 95 % bootstrap intervals. {notes[tuple(titles)]}"
        lines += ["", *table(["split", "head", "rows", *titles], named), "", note]
    if similarity:
        before, after = (show(similarity.get(f"spearman_{when}")) for when in ("before", "after"))
        pairs = f"{similarity['pairs']:,} text pairs"
        lines += ["", f"Sentence embedding: Spearman correlation of cosine similarity with human scores, {pairs}:"]
        lines += [f"{before} before training, {after} after training."]
    for name, task in (retrieval or {}).items():
        counts = f"{task['queries']:,} queries, {task['documents']:,} documents"
        lines += ["", f"Retrieval {code(name)}: {counts}, ranked by cosine similarity."]
    if rows := embedding_rows(similarity, retrieval or {}):
        lines += ["", "The first dimensions of the embedding, scaled to length 1 again, and its encodings:"]
        lines += ["", *table(HEADER, rows)]
    return ["## Evaluation", *lines] if lines else []


def prompts(texts: Mapping[str, str], of_labels: str | None) -> list[str]:
    """Formats the section about prompts; none without prompts.

    Args:
        texts: Text of each prompt, by its name.
        of_labels: Name of the prompt that the labelled texts were read with, if any.
    """
    if not texts:
        return []
    note = ["A prompt is a text that is put before another one. A request names it; by default there is none."]
    if of_labels is not None:
        note += [f"The heads were trained on texts with the prompt {code(of_labels)}: name it to get their answers."]
    rows = [[code(name), code(json.dumps(text, ensure_ascii=False))] for name, text in texts.items()]
    return ["## Prompts", "", *note, "", *table(["prompt", "text"], rows)]


def abstentions(promises: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Formats the section about heads that abstain; none without any.

    Args:
        promises: What each head promises, as in ``evaluation.selective.Promise``, by head name.
    """
    rows = [
        [
            code(name),
            f"{promise['accuracy']:g}",
            f"{promise['certainty']:g}",
            "never" if promise["threshold"] is None else f"below {promise['threshold']:.4g}",
            f"{promise['lower_bound']:.3f}",
        ]
        for name, promise in promises.items()
    ]
    if not rows:
        return []
    note = [
        "A head abstains where its confidence is low, so that its other answers keep an accuracy with some certainty,",
        "on texts similar to the validation data. A head without a confidence that achieves this never abstains; the",
        "last column then is the highest accuracy that one keeps.",
    ]
    header = ["head", "promised accuracy", "certainty", "abstains at a confidence", "lower bound of accuracy"]
    return ["## Abstention", "", *note, "", *table(header, rows)]


def prediction_sets(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Formats the section about prediction sets; none without any.

    Args:
        found: The sets of each head, as ``evaluation.prediction_sets.PredictionSets``, by head name; sets without a
            threshold are omitted.
    """
    rows = [
        [code(name), f"{sets['coverage']:g}", f"{sets['threshold']:.4g}", f"{sets['rows']:,}"]
        for name, sets in found.items()
        if sets["threshold"] is not None
    ]
    if not rows:
        return []
    note = [
        "A prediction set holds the most probable label and every label with at least the lowest probability. On texts",
        "similar to the validation data, the true label is in the set with the probability *coverage*.",
    ]
    header = ["head", "coverage", "lowest probability", "validation rows"]
    return ["## Prediction sets", "", *note, "", *table(header, rows)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Formats a Markdown table; escapes vertical bars in cells."""
    lines = [header, ["---"] * len(header), *([_in_cell(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def code(text: str) -> str:
    """Formats an untrusted text as inline code, so that Markdown in it has no effect."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    padding = " " if "`" in text else ""
    return f"{fence}{padding}{' '.join(text.split())}{padding}{fence}"


def thresholds(threshold: float | None, each: Sequence[float] | None) -> str:
    """Formats the threshold of a sigmoid head, or those of a multilabel head; an empty string without any."""
    if each:
        low, high = min(each), max(each)
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return "" if threshold is None else f"{threshold:g}"


def _front_matter(results: Results) -> list[str]:
    from huggingface_hub import EvalResult, ModelCardData

    name = results.run["name"]
    evaluations = [
        EvalResult(
            task_type="text-classification",
            dataset_type="private",
            dataset_name=name,
            dataset_split=split,
            metric_type=metric,
            metric_name=f"{head} {metric} ({split})",
            metric_value=round(found[key], 4),
        )
        for split, heads in results.splits.items()
        for head, found in heads.items()
        if found["rows"]
        for metric, key in (("accuracy", "accuracy"), ("f1", "macro_f1"), ("mae", "mae"))
        if found.get(key) is not None
    ]
    backbone = results.run["config"]["model"]["backbone"]
    data = ModelCardData(
        library_name="polyhead",
        pipeline_tag="text-classification",
        tags=["polyhead", "sentence-similarity", "text-classification"],
        # The path of a local folder is not a valid hub id.
        base_model=backbone if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", backbone) else None,
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )
    return ["---", "# license: set the license before you publish the model", *data.to_yaml().splitlines(), "---"]


def _introduction(results: Results) -> list[str]:
    model = results.run["config"]["model"]
    return [
        f"# {results.run['name']}",
        "",
        f"A text model based on {code(model['backbone'])}. One forward pass computes a sentence embedding and the",
        "predictions of every head below.",
        "",
        "## Intended use",
        "",
        "Predictions of the heads below for texts similar to the training data, and comparison of texts by the",
        "cosine similarity of their embeddings. The model is not intended for automated decisions about people.",
    ]


def _heads(heads: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [
            code(head["name"]),
            head["kind"],
            ", ".join(map(code, head["labels"])),
            f"{head['temperature']:.3g}",
            thresholds(head["threshold"], head.get("thresholds")),
        ]
        for head in heads
    ]
    if not heads:
        return []
    return ["## Heads", "", *table(["head", "kind", "labels", "temperature", "threshold"], rows)]


def _data(results: Results) -> list[str]:
    if results.data is None:
        return []
    rows = [
        [name, f"{split['rows']:,}", f"{split['duplicates']['exact']:,}", _truncated(split)]
        for name, split in results.data["splits"].items()
        if split["rows"]
    ]
    lines = ["## Data"]
    if rows:
        lines += ["", *table(["split", "rows", "duplicates", "truncated texts"], rows)]
    if sources := results.data.get("embedding"):
        taught = [
            [code(source["name"]), source["kind"].replace("_", " "), source["loss"], f"{source['rows']:,}"]
            for source in sources
        ]
        lines += ["", "Texts that taught the sentence embedding:"]
        lines += ["", *table(["source", "kind", "loss", "rows"], taught)]
    shared = sum(leak["exact"] + leak["near"] for leak in results.data["leakage"])
    return [*lines, "", f"{shared:,} texts occur in two splits, exactly or nearly."] if shared else lines


def _calibration(results: Results) -> list[str]:
    rows = []
    for head in results.heads:
        if (split := results.best_split(head["name"])) is not None:
            found = results.splits[split][head["name"]]
            if found["uncalibrated"] is None:
                continue
            pairs = [(found["uncalibrated"][key], found[key]) for key in ("ece", "brier", "nll")]
            rows.append([code(head["name"]), split, *(f"{before:.4f} to {after:.4f}" for before, after in pairs)])
    if not rows:
        return []
    return [
        "## Calibration",
        "",
        "Each head's logits are divided by a temperature that is fitted on validation. Its effect:",
        "",
        *table(["head", "split", "ECE", "Brier", "NLL"], rows),
    ]


def _limits(results: Results) -> list[str]:
    tokens = results.run["config"]["model"]["max_tokens"]
    lines = [
        f"- Texts are truncated to {tokens} tokens, special tokens included.",
        "- Performance on languages, periods and kinds of text outside the training data was not measured.",
        "- Probabilities are calibrated only for texts similar to the validation data.",
    ]
    weak = {head["name"]: _weakest(results, head["name"]) for head in results.heads}
    lines += [
        f"- The weakest labels of {code(head)} are {', '.join(labels)}." for head, labels in weak.items() if labels
    ]
    lines += [f"- **Warning**: {_in_line(warning)}." for warning in implausible(results.splits)]
    return ["## Limits", "", *lines]


def _weakest(results: Results, head: str) -> list[str]:
    """Returns the labels whose F1 is below the head's mean, the lowest first."""
    split = results.best_split(head)
    if split is None:
        return []
    found = results.splits[split][head]
    scores = sorted((one["f1"], label) for label, one in found.get("labels", {}).items() if one["support"])
    return [f"{code(label)} (F1 {f1:.2f})" for f1, label in scores[:_MAX_WEAK_LABELS] if f1 < found["macro_f1"]]


def _truncated(split: Mapping[str, Any]) -> str:
    share = (split.get("tokens") or {}).get("truncated")
    return "" if share is None else f"{100 * share:.1f} %"


def _in_line(text: str) -> str:
    """Escapes Markdown in a sentence with labels of the data."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", " ".join(text.split()))


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")

"""The model card: what a run's model is for, how good it is, what it cannot do, and how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyhead_training.runs.run_directory import CARD_NAME

from .results import Results, read_results

# Labels that are named one by one; a card is no report.
_SHOWN_LABELS = 5
_USAGE = """\
## Use

From PyTorch, with the folder of this card as `run`:

```python
from pathlib import Path

import polyhead_training.model  # tells transformers what a polyhead is
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

The logits are as they were trained: divide them by the head's temperature before the softmax or the sigmoid. The server
does so itself. To export the model to ONNX, check it and serve it:

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
    """The card as Markdown, with front matter as the Hugging Face hub reads it."""
    sections = [
        _front_matter(results),
        _introduction(results),
        _heads(results.heads),
        _data(results),
        figures(results.splits, results.similarity),
        _calibration(results),
        _limits(results),
    ]
    return "\n\n".join(["\n".join(lines) for lines in sections if lines] + [_USAGE]) + "\n"


def figures(splits: Mapping[str, Mapping[str, Any]], similarity: Mapping[str, Any] | None) -> list[str]:
    """The section about how good a model is; a head without labels in a split has no line.

    Args:
        splits: ``evaluation.json`` by split and head.
        similarity: Its figures about the sentence embedding, if any.

    Returns:
        Lines of Markdown; none without figures.
    """
    lines = []
    if rows := list(_scores(splits)):
        header = ["split", "head", "rows", "accuracy", "commonest label alone", "macro-F1", "ECE"]
        note = "In brackets 95 % intervals, from resamples of the rows. ECE: expected calibration error."
        lines += ["", *table(header, rows), "", note]
    if similarity:
        before, after = (_figure(similarity.get(f"spearman_{when}")) for when in ("before", "after"))
        pairs = f"{similarity['pairs']:,} pairs of texts with people's scores"
        lines += ["", f"Sentence embedding: Spearman correlation of the cosines of {pairs}:"]
        lines += [f"{before} before training, {after} after."]
    return ["## Evaluation", *lines] if lines else []


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; a bar inside a cell is escaped, where it would end the cell."""
    lines = [header, ["---"] * len(header), *([_in_cell(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def code(text: str) -> str:
    """A text of the data as code, whatever is in it: Markdown in it means nothing."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    padding = " " if "`" in text else ""
    return f"{fence}{padding}{' '.join(text.split())}{padding}{fence}"


def _front_matter(results: Results) -> list[str]:
    metrics = [
        {"type": kind, "name": f"{name} {kind} ({split})", "value": round(found[key], 4)}
        for split, heads in results.splits.items()
        for name, found in heads.items()
        if found["rows"]
        for kind, key in (("accuracy", "accuracy"), ("f1", "macro_f1"))
    ]
    result = {
        "task": {"type": "text-classification"},
        "dataset": {"name": results.run["name"], "type": "private"},
        "metrics": metrics,
    }
    backbone = results.run["config"]["model"]["backbone"]
    fields: dict[str, Any] = {
        "library_name": "polyhead",
        "pipeline_tag": "text-classification",
        "tags": ["polyhead", "sentence-similarity", "text-classification"],
        # A folder's path would be no name on the hub.
        **({"base_model": backbone} if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", backbone) else {}),
        **({"model-index": [{"name": results.run["name"], "results": [result]}]} if metrics else {}),
    }
    # JSON is YAML, and quotes every text.
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return ["---", "# license: name the licence before you publish the model", *lines, "---"]


def _introduction(results: Results) -> list[str]:
    model = results.run["config"]["model"]
    return [
        f"# {results.run['name']}",
        "",
        f"A text model on {code(model['backbone'])}: one pass answers a text with a sentence embedding and with every",
        "head below.",
        "",
        "## Intended use",
        "",
        "Texts like those it was trained on: sorting them by the labels below, and comparing them by the cosine of",
        "their embeddings. It was not made to decide about people on its own.",
    ]


def _heads(heads: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [
            code(head["name"]),
            head["kind"],
            ", ".join(map(code, head["labels"])),
            f"{head['temperature']:.3g}",
            "" if head["threshold"] is None else f"{head['threshold']:g}",
        ]
        for head in heads
    ]
    return ["## Heads", "", *table(["head", "kind", "labels", "temperature", "threshold"], rows)]


def _data(results: Results) -> list[str]:
    if results.data is None:
        return []
    rows = [
        [name, f"{split['rows']:,}", f"{split['duplicates']['exact']:,}", _truncated(split)]
        for name, split in results.data["splits"].items()
        if split["rows"]
    ]
    lines = ["## Data", "", *table(["split", "rows", "duplicates", "texts cut off"], rows)]
    shared = sum(leak["exact"] + leak["near"] for leak in results.data["leakage"])
    return [*lines, "", f"{shared:,} texts stand in two splits, word for word or nearly."] if shared else lines


def _calibration(results: Results) -> list[str]:
    rows = []
    for head in results.heads:
        if (split := results.best_split(head["name"])) is not None:
            found = results.splits[split][head["name"]]
            pairs = [(found["uncalibrated"][key], found[key]) for key in ("ece", "brier", "nll")]
            rows.append([code(head["name"]), split, *(f"{before:.4f} to {after:.4f}" for before, after in pairs)])
    if not rows:
        return []
    return [
        "## Calibration",
        "",
        "Each head's logits are divided by one temperature, fitted on validation. What this changed:",
        "",
        *table(["head", "split", "ECE", "Brier", "NLL"], rows),
    ]


def _limits(results: Results) -> list[str]:
    tokens = results.run["config"]["model"]["max_tokens"]
    lines = [
        f"- It reads the first {tokens} tokens of a text, special tokens included.",
        "- Other languages, times and kinds of text than those of its training data were not measured.",
        "- A probability means what it says on texts like those of validation, and nowhere else.",
    ]
    weak = {head["name"]: _weakest(results, head["name"]) for head in results.heads}
    lines += [f"- {code(head)} is weakest at {', '.join(labels)}." for head, labels in weak.items() if labels]
    return ["## Limits", "", *lines]


def _weakest(results: Results, head: str) -> list[str]:
    """The labels whose F1 is below the head's mean, the lowest first."""
    split = results.best_split(head)
    if split is None:
        return []
    found = results.splits[split][head]
    scores = sorted((one["f1"], label) for label, one in found["labels"].items() if one["support"])
    return [f"{code(label)} (F1 {f1:.2f})" for f1, label in scores[:_SHOWN_LABELS] if f1 < found["macro_f1"]]


def _scores(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    for split, heads in splits.items():
        for head, found in heads.items():
            if found["rows"]:
                low, high = found["intervals"]["accuracy"]
                yield [
                    split,
                    code(head),
                    f"{found['rows']:,}",
                    f"{found['accuracy']:.4f} [{low:.4f}, {high:.4f}]",
                    *(_figure(found[key]) for key in ("majority_baseline", "macro_f1", "ece")),
                ]


def _truncated(split: Mapping[str, Any]) -> str:
    share = (split.get("tokens") or {}).get("truncated")
    return "" if share is None else f"{100 * share:.1f} %"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")

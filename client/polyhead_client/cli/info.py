"""``polyhead info``: the model behind a server, as a table or as JSON."""

from __future__ import annotations

import json
import sys
from contextlib import suppress

from polyhead_client.model_info import HeadInfo, ModelInfo

from .printable import printable
from .units import format_bytes


def render(model: ModelInfo) -> str:
    """Renders a table: styled and wrapped for a terminal, plain and unwrapped otherwise, so that grep finds lines."""
    rows = [(name, printable(value)) for name, value in _rows(model)]
    if sys.stdout is not None and sys.stdout.isatty():
        with suppress(ModuleNotFoundError):  # the image of the server has no rich
            return _render_styled(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _render_styled(rows: list[tuple[str, str]]) -> str:
    from rich.console import Console  # rich takes a fifth of a command's start-up time
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _rows(model: ModelInfo) -> list[tuple[str, str]]:
    embedding, limits, runtime = model.embedding, model.limits, model.runtime
    rows = [
        ("model", model.model_id),
        *([("", f"served as {model.name}")] if model.name else []),
        *([("models", ", ".join(model.model_names))] if len(model.model_names) > 1 else []),
        ("engine", f"{runtime.engine}, {runtime.device}, {runtime.variant}"),
        *(("", f"fallback: {reason}") for reason in runtime.fallback_reasons),
        ("embedding", f"{embedding.dimensions} dimensions, {embedding.pooling} pooling"),
        ("", "normalized to length 1" if embedding.normalized else "not normalized"),
        ("", f"embedding space {model.fingerprints.embedding_space}"),
    ]
    for head in model.heads:
        rows += _head_rows(head, model.fingerprints.heads.get(head.name, "unknown"))
    for index, (name, text) in enumerate(model.prompts.items()):
        rows.append(("" if index else "prompts", f"{name}: {json.dumps(text, ensure_ascii=False)}"))
    if model.has_novelty:
        rows.append(("novelty", "available with --novelty"))
    rows += [
        ("limits", f"{limits.max_tokens:,} tokens per text, of its first {limits.max_characters:,} characters"),
        *([("", f"{limits.max_windows:,} windows per text")] if limits.max_windows else []),
        ("", f"{limits.max_items_per_message:,} items and {format_bytes(limits.max_message_bytes)} per message"),
        ("server", f"version {model.server_version}, bundle format {model.bundle_format_version}"),
    ]
    return rows


def _head_rows(head: HeadInfo, fingerprint: str) -> list[tuple[str, str]]:
    rows = [("head", f"{head.name} ({head.kind}), fingerprint {fingerprint}")]
    if head.labels:
        threshold = "" if head.threshold is None else f", threshold {head.threshold:g}"
        labels = [*head.labels]
        if head.thresholds:
            labels = [f"{label} from {least:g}" for label, least in zip(labels, head.thresholds, strict=True)]
        rows += [("", f"labels {', '.join(labels)}"), ("", f"temperature {head.temperature:g}{threshold}")]
    if found := head.abstention:
        kept = f"an accuracy of {found.accuracy:g} with certainty {found.certainty:g}"
        rows.append(("", f"abstains below a confidence of {found.threshold:.4g}, to keep {kept}"))
    if sets := head.prediction_sets:
        rows.append(("", f"prediction sets with a coverage of {sets.coverage:g}, with --prediction-sets"))
    return rows

"""The comparison of a candidate with the served model, as one self-contained HTML page.

``polyhead-export compare`` writes a similar page about two bundles and a file of texts. The client installs no template
engine, so this page is made by hand: every text goes through ``escape``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from html import escape

from polyhead.v1 import admin_service_pb2 as pb2

from .comparison import agreement, canary_lines, embedding, latency, notes, seen

# Labels of a matrix that is shown; one of more labels is a list of changes.
_MAX_LABELS = 40
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .6rem; border: 1px solid #d0d0d0; text-align: left; vertical-align: top; }
.matrix td { text-align: right; font-variant-numeric: tabular-nums; }
.wrap { overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  body { background: #16181c; color: #e6e6e6; }
  th, td { border-color: #3a3d42; }
}
"""


def as_html(found: pb2.CompareResponse) -> str:
    """Renders a comparison."""
    title = f"{found.candidate.model_id} and {found.served_model_id}"
    body = "\n".join(_body(found))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}: comparison on live texts</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _body(found: pb2.CompareResponse) -> Iterator[str]:
    yield "<h1>Comparison on live texts</h1>"
    yield _list(
        [f"Served: {found.served_model_id}", f"Candidate: {found.candidate.model_id} ({found.candidate.bundle})"]
    )
    if found.HasField("shadow"):
        yield from _shadow(found.shadow)
    if found.HasField("canary"):
        yield "<h2>Canary</h2>"
        yield _list(canary_lines(found.canary))


def _shadow(found: pb2.ShadowComparison) -> Iterator[str]:
    facts = [
        f"Texts: {seen(found)}",
        f"Time of the served model for a text: {latency(found.served_latency)}",
        f"Time of the candidate, with its waits for the processor: {latency(found.candidate_latency)}",
    ]
    if found.failure:
        facts.append(f"The comparison has ended: {found.failure}")
    yield _list(facts)
    comparison = embedding(found.embedding)
    yield f"<h2>Embedding</h2>\n<p>{escape(comparison[0].upper() + comparison[1:])}.</p>"
    for head in found.heads:
        yield f"<h2>{escape(head.name)}</h2>\n<p>{escape(agreement(head))}</p>"
        yield _list(notes(head))
        if head.cells and len(head.rows) <= _MAX_LABELS:
            yield _matrix(head)
        if head.texts:
            yield "<h3>Texts whose answer changed</h3>"
            rows = [(one.served, one.candidate, one.text) for one in head.texts]
            yield _table(("Served", "Candidate", "Text"), rows)
    if found.not_compared:
        yield "<h2>Heads that were not compared</h2>"
        yield _list(f"{name}: {reason}" for name, reason in sorted(found.not_compared.items()))


def _matrix(head: pb2.HeadComparison) -> str:
    counts: dict[int, dict[int, int]] = defaultdict(dict)
    for cell in head.cells:
        counts[cell.row][cell.column] = cell.texts
    multilabel = head.kind == "multilabel"
    what = (
        "Texts of each label" if multilabel else "Texts by label of the served model (row) and the candidate (column)"
    )
    header = "".join(f"<th>{escape(label)}</th>" for label in head.columns)
    rows = []
    for row, label in enumerate(head.rows):
        total = max(sum(counts[row].values()), 1)
        equal = 0 if multilabel else row
        cells = "".join(
            _cell(counts[row].get(column, 0), total, equal=column == equal) for column in range(len(head.columns))
        )
        rows.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    return (
        f'<p>{what}.</p>\n<div class="wrap"><table class="matrix">\n<tr><th></th>{header}</tr>\n'
        + "\n".join(rows)
        + "\n</table></div>"
    )


def _cell(count: int, total: int, *, equal: bool) -> str:
    color = "0, 114, 178" if equal else "213, 94, 0"
    opacity = 0.05 + 0.6 * count / total if count else 0.0
    return f'<td style="background: rgba({color}, {opacity:.2f})">{count:,}</td>'


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["".join(f"<th>{escape(one)}</th>" for one in header)]
    lines += ["".join(f"<td>{escape(one)}</td>" for one in row) for row in rows]
    return '<div class="wrap"><table>\n' + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table></div>"


def _list(lines: Iterable[str]) -> str:
    items = "\n".join(f"<li>{escape(line.strip())}</li>" for line in lines)
    return f"<ul>\n{items}\n</ul>" if items else ""

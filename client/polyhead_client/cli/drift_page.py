"""A comparison of traffic with a model's validation texts, as one self-contained HTML page, light and dark.

The client requires no template engine, so the page is made of a few functions that escape what they insert.
"""

from __future__ import annotations

from html import escape

from .drift_report import DriftBin, DriftMeasure, DriftReport

# Bins that are drawn; of a head with more labels, those that changed most.
_DRAWN_BINS = 30

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --page: #ffffff; --faint: #6e7781; --line: #d0d7de;
  --reference: #8c959f; --observed: #0072b2; --drift: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --page: #0d1117; --faint: #8b949e; --line: #30363d;
  --reference: #6e7681; --observed: #56b4e9; --drift: #f08a3c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.drift { color: var(--drift); font-weight: 600; } .note { color: var(--faint); }
.wrap { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: 0.2rem 0.8rem 0.2rem 0; text-align: left; border-bottom: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bins { display: grid; grid-template-columns: minmax(4rem, 12rem) 1fr 8rem; gap: 0.3rem 0.8rem; align-items: center; }
.bins span { overflow-wrap: anywhere; }
@media (max-width: 40rem) { .bins { grid-template-columns: 28% 1fr auto; } }
.bar { height: 0.5rem; min-width: 1px; border-radius: 2px; margin: 1px 0; background: var(--reference); }
.bar.observed { background: var(--observed); }
.key { display: inline-block; width: 0.8rem; height: 0.5rem; border-radius: 2px; background: var(--reference); }
.key.observed { background: var(--observed); }
.drifted .observed { background: var(--drift); }
"""


def as_html(report: DriftReport) -> str:
    """Renders a comparison as HTML."""
    title = f"{escape(report.model_id)}: drift"
    state = ' class="drift"' if report.drifted else ""
    limits = f"a distance of at least {report.min_distance:g} with a p-value of at most {report.max_p_value:g}"
    sections = "\n".join(_section(measure) for measure in report.measures if measure.bins)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>{escape(_sentence(report.summary))}</p>
<p{state}>{escape(_sentence(report.verdict))}</p>
{_table(report)}
<p class="note">Drift is {limits}, which is corrected for the number of measures.</p>
{sections}
</body>
</html>
"""


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _table(report: DriftReport) -> str:
    header = "".join(f'<th class="number">{name}</th>' for name in ("Texts", "Effective", "Distance", "p"))
    rows = "\n".join(_row(measure) for measure in report.measures)
    return (
        '<div class="wrap" tabindex="0"><table>\n<thead><tr><th>Head</th><th>Measure</th>'
        f"{header}<th></th></tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _row(measure: DriftMeasure) -> str:
    p_value = "" if measure.p_value is None else f"{measure.p_value:.2g}"
    numbers = (f"{measure.texts:,}", f"{measure.effective_texts:,.0f}", f"{measure.distance:.3f}", p_value)
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    state = '<td class="drift">drift</td>' if measure.drifted else "<td></td>"
    return f"<tr><td>{escape(measure.head)}</td><td>{escape(measure.name)}</td>{cells}{state}</tr>"


def _section(measure: DriftMeasure) -> str:
    shown = {one.name for one in measure.changes()[:_DRAWN_BINS]}
    largest = max(max(one.reference, one.observed) for one in measure.bins) or 1.0
    bins = "\n".join(_bin(one, largest) for one in measure.bins if one.name in shown)
    left_out = len(measure.bins) - len(shown)
    note = f'\n<p class="note">{left_out} others, which changed less, are not shown.</p>' if left_out else ""
    state, kind = (' <span class="drift">drift</span>', ' class="drifted"') if measure.drifted else ("", "")
    return (
        f"<section{kind}>\n<h2>{escape(measure.title)}{state}</h2>\n"
        '<p class="note"><span class="key"></span> validation <span class="key observed"></span> recent texts</p>\n'
        f'<div class="bins">\n{bins}\n</div>{note}\n</section>'
    )


def _bin(one: DriftBin, largest: float) -> str:
    bars = "".join(
        f'<div class="bar{kind}" style="width: {100 * value / largest:.1f}%"></div>'
        for kind, value in (("", one.reference), (" observed", one.observed))
    )
    values = f"{100 * one.reference:.1f} → {100 * one.observed:.1f} %"
    return f'<span>{escape(one.name)}</span><div>{bars}</div><span class="number">{values}</span>'

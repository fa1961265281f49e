"""The training report is one self-contained page that shows the results of a run and escapes all texts."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.abstain_config import AbstainConfig
from polyhead_training.model_config import HeadConfig
from polyhead_training.reporting.report import render_report, write_report
from polyhead_training.reporting.results import read_results

from tests.support.finished_run import HEADS, HOSTILE, OTHER_KINDS, write_finished_run

_VOID = {"meta", "link", "br", "img"}


class _Page(HTMLParser):
    """Tags, attributes and text of a page, and whether every tag is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self._open and self._open[-1] not in {"style", "title"} else ""


def _page(folder: Path) -> _Page:
    return _Page(render_report(read_results(folder)))


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **values}))


def test_report_is_self_contained(finished_run: Path) -> None:
    write_report(finished_run)
    html = (finished_run / "report.html").read_text("utf-8")
    page = _Page(html)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in {"src", "href"} or name.startswith("on")]
    assert not re.search(r"https?://|@import|url\(", html)


def test_texts_and_labels_are_escaped(finished_run: Path) -> None:
    html = render_report(read_results(finished_run))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 20
    assert HOSTILE in _Page(html).text


def test_sections_are_in_order(finished_run: Path) -> None:
    html = render_report(read_results(finished_run))
    assert re.findall("<h2>(.*?)</h2>", html) == [
        "Evaluation",
        "Sentence embedding",
        "Training",
        "Head topic",
        "Head sentiment",
        "Head urgent",
        "Data",
        "Configuration",
        "Versions",
    ]


def test_metrics_match_the_evaluation(finished_run: Path) -> None:
    found = json.loads((finished_run / "evaluation.json").read_bytes())["test"]["topic"]
    text = _page(finished_run).text.replace("\N{NO-BREAK SPACE}", " ")
    low, high = found["intervals"]["accuracy"]
    assert f"{100 * found['accuracy']:.1f} %" in text
    assert f"95 % interval {100 * low:.1f} to {100 * high:.1f}" in text
    assert f"{100 * (found['accuracy'] - found['majority_baseline']):.1f} points above" in text
    for before, after in ((found["uncalibrated"][name], found[name]) for name in ("brier", "nll")):
        assert f"{before:.4f}{after:.4f}" in text


def test_head_not_above_the_majority_baseline_is_flagged(finished_run: Path) -> None:
    path = finished_run / "evaluation.json"
    content = json.loads(path.read_bytes())
    content["test"]["topic"]["majority_baseline"] = content["test"]["topic"]["intervals"]["accuracy"][0]
    assert "not significantly above" not in _page(finished_run).text
    path.write_text(json.dumps(content))
    assert "not significantly above" in _page(finished_run).text


def test_embedding_is_compared_with_before_training(finished_run: Path) -> None:
    text = " ".join(_page(finished_run).text.split())
    assert "Before training: 0.867, change -0.012." in text
    assert "Spearman0.86740.8551 -0.0123" in text
    assert "Pearson0.8600- -" in text


def test_head_without_labels_has_a_note(finished_run: Path) -> None:
    assert "Test and validation have no labels for this head." in _page(finished_run).text


def test_long_texts_are_shortened(finished_run: Path) -> None:
    text = _page(finished_run).text
    assert "long long …" in text
    assert max(map(len, re.findall("(?:long ?)+", text))) < 280


def test_errors_show_their_location(finished_run: Path) -> None:
    [error, *_] = json.loads((finished_run / "evaluation.json").read_bytes())["test"]["topic"]["errors"]
    assert f"rows.jsonl:{error['line']}" in _page(finished_run).text


def test_head_that_learned_nothing_is_shown(finished_run: Path) -> None:
    content = json.loads((finished_run / "evaluation.json").read_bytes())
    for label, found in content["test"]["topic"]["labels"].items():
        found["answered"] = 120 * (label == HOSTILE)
    (finished_run / "evaluation.json").write_text(json.dumps(content))
    assert f"head 'topic' predicts {HOSTILE!r} for each of the 120 rows" in _page(finished_run).text


def test_data_section_shows_statistics_and_warnings(finished_run: Path) -> None:
    text = " ".join(_page(finished_run).text.replace("\N{NO-BREAK SPACE}", " ").split())
    assert f"3 texts of test occur in train: {HOSTILE}" in text
    assert "train1,2000 41 1240300 1.2 %0.4 %" in text
    assert "train and test12 a.jsonl:3 and b.jsonl:9" in text
    assert "app 400 33.3 %" in text


def test_configuration_is_shown_unchanged(finished_run: Path) -> None:
    html = render_report(read_results(finished_run))
    [shown] = re.findall("<pre>(.*?)</pre>", html, flags=re.DOTALL)
    unescaped = _Page(f"<pre>{shown}</pre>").text
    assert json.loads(unescaped) == json.loads((finished_run / "run.json").read_bytes())["config"]


def test_charts_mark_the_start_of_each_stage(finished_run: Path) -> None:
    html = render_report(read_results(finished_run))
    loss = html[html.index("Training loss by head") : html.index("Learning rate<")]
    assert re.findall(r'text-anchor="start">(\w+)<', loss) == ["first", "second"]
    assert "distillation, 1 - cosine" in loss


@pytest.mark.parametrize(
    ("missing", "section"), [("data.json", "Data"), ("metrics.jsonl", "Training"), (None, "Sentence embedding")]
)
def test_section_without_data_is_omitted(finished_run: Path, missing: str | None, section: str) -> None:
    if missing:
        (finished_run / missing).unlink()
    else:
        path = finished_run / "evaluation.json"
        content = json.loads(path.read_bytes())
        del content["similarity"]
        path.write_text(json.dumps(content))
    html = render_report(read_results(finished_run))
    assert f"<h2>{section}</h2>" not in html
    assert html.count("<h2>") == 8


def test_run_without_any_labels_has_a_report(finished_run: Path) -> None:
    path = finished_run / "evaluation.json"
    content = json.loads(path.read_bytes())
    nothing = dict.fromkeys(content["test"], content["test"]["urgent"])
    path.write_text(json.dumps({"validation": nothing}))
    (finished_run / "metrics.jsonl").write_text("")
    assert "so there are no metrics" in _page(finished_run).text


def test_large_confusion_matrix_shows_the_most_confused_labels(tmp_path: Path) -> None:
    head = HeadConfig(name="topic", kind="softmax", labels=tuple(f"label {number}" for number in range(150)))
    write_finished_run(tmp_path, [head])
    html = render_report(read_results(tmp_path))
    matrix = html[html.index('<table class="matrix') : html.index("Color: share of the row")]
    assert matrix.count("<tr>") == 21
    assert matrix.count("<td") == 400
    assert "Shows the 20 most confused labels and omits 130 others." in _Page(html).text


def test_small_confusion_matrix_is_complete(finished_run: Path) -> None:
    counts = json.loads((finished_run / "evaluation.json").read_bytes())["test"]["topic"]["confusion"]
    html = render_report(read_results(finished_run))
    matrix = html[html.index('<table class="matrix') : html.index("Color: share of the row")]
    assert [int(count) for count in re.findall(r"<td[^>]*>(\d+)</td>", matrix)] == [
        count for row in counts for count in row
    ]
    assert "omits" not in _Page(html).text


@pytest.mark.parametrize("count", [1, 8])
def test_any_number_of_heads_has_a_report(tmp_path: Path, count: int) -> None:
    heads = [HEADS[1].model_copy(update={"name": f"head_{number}"}) for number in range(count)]
    html = render_report(read_results(write_finished_run(tmp_path, heads)))
    assert len(re.findall("<h2>Head head_", html)) == count
    assert f"{count} head{'s' if count > 1 else ''} on" in _Page(html).text


def test_report_is_deterministic(finished_run: Path) -> None:
    first, second = (render_report(read_results(finished_run)) for _ in range(2))
    assert first == second


def test_long_training_time_is_shown_in_minutes(finished_run: Path) -> None:
    assert "trained in 15 s" in _page(finished_run).text
    line = {"step": 40, "seconds": 600.0, "stage": "second", "learning_rate": 1e-4, "loss": 1.0, "losses": {}}
    with (finished_run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    assert "trained in 10 min 0 s" in _page(finished_run).text


def test_heads_of_other_kinds_show_their_own_metrics(tmp_path: Path) -> None:
    results = read_results(write_finished_run(tmp_path, OTHER_KINDS))
    text = " ".join(_Page(render_report(results)).text.replace("\N{NO-BREAK SPACE}", " ").split())
    found = results.splits["test"]
    assert f"tags micro-F1, test {100 * found['tags']['micro_f1']:.1f} %" in text
    assert f"stars MAE, test {found['stars']['mae']:.3f}" in text
    assert f"price MAE, test {found['price']['mae']:.3f}" in text
    assert text.count("below the median baseline") == 2
    for metric in ("mean_average_precision", "macro_f1"):
        assert f"{found['tags'][metric]:.4f}" in text
    for metric in ("rmse", "r2", "spearman", "pearson"):
        assert f"{found['price'][metric]:.4f}" in text
    for title in ("Prediction over true number", "Average precision", "Largest errors", "quadratic weighted kappa"):
        assert title in text


def test_labels_in_lists_are_escaped(tmp_path: Path) -> None:
    html = render_report(read_results(write_finished_run(tmp_path, OTHER_KINDS)))
    assert "<script" not in html
    assert HOSTILE in _Page(html).text


def test_error_that_exceeds_the_baseline_is_flagged(tmp_path: Path) -> None:
    path = write_finished_run(tmp_path, OTHER_KINDS[2:]) / "evaluation.json"
    assert "not significantly below" not in _Page(render_report(read_results(tmp_path))).text
    content = json.loads(path.read_bytes())
    content["test"]["price"]["mae_baseline"] = content["test"]["price"]["mae"]
    path.write_text(json.dumps(content))
    assert "not significantly below" in _Page(render_report(read_results(tmp_path))).text


def test_head_that_abstains_has_a_curve_with_its_promise(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path, abstain={"topic": AbstainConfig(accuracy=0.6)})
    html = render_report(read_results(folder))
    found = json.loads((folder / "evaluation.json").read_text())["test"]["topic"]["abstention"]
    section = html[html.index("<h3>Abstention</h3>") :]
    section = section[: section.index("<h3>Labels")]
    assert "<polygon" in section
    assert f"{100 * found['coverage']:.1f}" in section
    assert "Below this confidence the head abstains" in section
    assert html.count("<h3>Abstention</h3>") == 1


def test_promise_that_no_confidence_keeps_is_shown(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path, abstain={"topic": AbstainConfig(accuracy=0.99)})
    html = render_report(read_results(folder))
    assert "Highest accuracy that a confidence keeps" in html
    assert "so the head never abstains" in html

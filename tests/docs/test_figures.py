"""Measured figures stand in generated pages and blocks alone; every other page links to them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.report.page import BLOCK, read_results
from tests.support.demo import ROOT

# Pages that a program writes begin with a comment that names it.
GENERATED = re.compile(r"<!-- (?:Written|Generated) by ")
CODE = re.compile(r"(?ms)^```.*?^```$|`[^`\n]*`")
QUANTITY = re.compile(
    r"(?<![\w.,/-])(\d[\d,]*(?:\.\d+)?)\s?"
    r"(MB|GB|kB|ms|us|µs|s|texts/s|texts a second|texts per second|%|x|times)(?![\w/-])"
)
SCORE = re.compile(r"(?<![\w.,/-])[01]\.\d+(?![\w.]*\d)")
# A quantity near one of these words says how fast, how large or how good something is.
PERFORMANCE = re.compile(
    r"\b(throughput|latenc\w+|p50|p90|p99|memory|resident|RSS|peak|startup|starts? in|texts/s|texts a second"
    r"|texts per second|CPU time|as fast|faster|slower|speed\w*|measured|median|overhead|efficiency|weighs?)\b",
    re.IGNORECASE,
)
QUALITY = re.compile(
    r"\b(accuracy|macro-F1|F1|correlation|calibration error|cosine|throughput|efficiency)\b", re.IGNORECASE
)
# A quantity beside one of these words is a setting or a rule and not a measurement.
CONFIGURED = re.compile(
    r"\b(defaults?|limits?|limited|at most|up to|at least|maximum|minimum|timeout|deadline|interval|threshold|tolerance"
    r"|target|must|buckets?|refus\w+|reject\w+|requires?|e\.g\.|for example)\b",
    re.IGNORECASE,
)
# Figures of the guides that no program measures: page, part of the sentence, reason.
ALLOWED: tuple[tuple[str, str, str], ...] = ()


def pages() -> Iterator[tuple[str, str]]:
    """Yields the pages that people write, with their path; decision records may hold the measurements behind them."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        if not GENERATED.match(text) and not name.startswith("docs/decisions/"):
            yield name, text


@functools.cache
def generated_figures() -> frozenset[str]:
    """Returns the memory, sizes and startup times of bench/results as a page would quote them, such as ``246 MB``."""
    results = read_results(ROOT / "bench/results")
    size = results["install_size"]
    megabytes = [size["size_mb"], *size["largest_mb"].values()]
    found = set()
    for server in results["startup"]["servers"].values():
        megabytes += [server["rss_mb"][0], server["peak_rss_mb"][0]]
        found |= {f"{server['startup_s'][0]:.{digits}f} s" for digits in (1, 2)}
    return frozenset(found | {f"{value:.0f} MB" for value in megabytes})


def handwritten_figures(text: str) -> list[str]:
    """Returns each sentence or table row that holds a measured figure outside of the generated blocks."""
    return [sentence for heading, sentence in _sentences(BLOCK.sub("", text)) if _is_measured(heading, sentence)]


def _sentences(text: str) -> Iterator[tuple[str, str]]:
    """Yields each sentence and table row of a page, a row with the heading of its table."""
    heading = ""
    for block in re.split(r"\n\s*\n|\n(?=[|#]|\s*[-*] )", CODE.sub("CODE", text)):
        line = " ".join(block.split())
        if line.startswith("|"):
            heading = heading or line
            yield heading, line
        else:
            heading = ""
            for sentence in re.split(r"(?<=[.;:])\s+(?=[A-Z*(\[\d])", line):
                yield "", sentence


def _is_measured(heading: str, sentence: str) -> bool:
    quantities = {f"{number} {unit}" for number, unit in QUANTITY.findall(sentence)}
    if quantities & generated_figures():
        return True
    if CONFIGURED.search(heading + sentence) and not re.search(r"\bmeasured\b", sentence, re.IGNORECASE):
        return False
    return bool(
        (quantities and PERFORMANCE.search(sentence))
        or (SCORE.search(sentence) and QUALITY.search(f"{heading} {sentence}"))
    )


def test_pages_hold_no_handwritten_figures() -> None:
    allowed = [(page, snippet) for page, snippet, _ in ALLOWED]
    found = [
        f"{page}: {sentence}"
        for page, text in pages()
        for sentence in handwritten_figures(text)
        if not any(page == known and snippet in sentence for known, snippet in allowed)
    ]
    assert not found, "link to docs/benchmarks.md, or use a generated block:\n" + "\n".join(found)


def test_allowed_figures_still_exist() -> None:
    texts = dict(pages())
    assert [page for page, snippet, _ in ALLOWED if snippet not in " ".join(texts.get(page, "").split())] == []


@pytest.mark.parametrize(
    "sentence",
    [
        "Throughput with 64 texts in flight is 386 texts/s.",
        "| peak memory: int8, fp32 | 204 MB, 235 MB |",
        "| `clothing.toml` | accuracy 0.886 | macro-F1 0.679 |",
        "int8 is 2.4 times as fast as fp32.",
        "At half of the load the p99 was 46 ms.",
        "We measured at most 300 MB.",
    ],
)
def test_handwritten_figure_is_found(sentence: str) -> None:
    assert handwritten_figures(f"# Page\n\nSome text.\n\n{sentence}\n") == [CODE.sub("CODE", sentence)]


def test_figure_of_a_result_file_is_found_without_a_word_for_it() -> None:
    seconds, megabytes = (next(one for one in generated_figures() if one.endswith(unit)) for unit in (" s", " MB"))
    for figure in (seconds, megabytes):
        sentence = f"The default bundle takes {figure}."
        assert handwritten_figures(sentence) == [sentence]
    assert handwritten_figures("The default bundle takes 12,345 MB.") == []


@pytest.mark.parametrize(
    "sentence",
    [
        "`--drain-timeout-s` is 30 s by default.",
        "Texts of up to 64 MB are accepted.",
        "The server keeps a connection open for 20 s.",
        "Throughput grows with cores; see the benchmarks.",
        "Run `polyhead-serve --threads 2`, which logs `memory 246 MB`.",
        "polyhead 0.2.0 requires onnxruntime 1.24.",
        "| check | limit |\n| --- | --- |\n| accuracy lost | 0.003 |",
    ],
)
def test_configured_limit_or_version_is_not_a_figure(sentence: str) -> None:
    assert handwritten_figures(sentence) == []


def test_generated_block_is_exempt() -> None:
    figure = "Memory is 246 MB."
    block = f"<!-- generated: sizing -->\n{figure}\n<!-- end of generated -->\n"
    assert handwritten_figures(block) == []
    assert handwritten_figures(f"{block}\n{figure}") == [figure]


def test_generated_pages_name_their_program() -> None:
    written = {page for page, _ in pages()}
    generated = {"docs/benchmarks.md", "docs/performance.md"}
    assert generated.isdisjoint(written)
    assert all((ROOT / Path(page)).exists() for page in generated)

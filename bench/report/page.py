"""Writes docs/benchmarks.md and its plots from the figures in bench/results; measures nothing.

    python bench/report/page.py             # the page and docs/benchmarks/*.svg
    python bench/report/page.py --check     # ends with 1 where the page is not what the figures give; needs no matplotlib

A section whose file is missing is left out. The plots need the extra ``bench``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs/benchmarks.md"
Report = dict[str, Any]
Rows = Mapping[str, Mapping[str, Sequence[float]]]

# Order and titles of the columns; a figure that is not named here comes last, under its own name.
TITLES = {
    "share": "share of the limit",
    "share_without_client": "without the client",
    "items_per_s": "texts/s",
    "tokens_per_s": "tokens/s",
    "padding": "padding",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "overhead_ms": "overhead, ms",
    "errors": "errors",
    "client_cpu": "client, cores",
    "least": "least",
    "most": "most",
    "serving_after_s": "serving after, s",
    "start_cpu_s": "CPU until then, s",
    "idle_cpu_percent": "idle CPU, %",
    "rss_before_mb": "MB before",
    "rss_mb": "MB after",
    "mb": "MB",
    "peak_mb": "MB at most",
}
# In the files only: they would make the tables too wide to read.
UNTOLD = {"limit", "n", "alone_ms", "p90_ms", "due_per_s", "rate"}
WHOLE = ("items_per_s", "tokens_per_s", "errors", "mb", "rss_before_mb", "rss_mb", "peak_mb")

INTRODUCTION = """<!-- Written by `python bench/report/page.py` from the figures in bench/results: change those, not this. -->
# Benchmarks

How near the server comes to what the machine can do, how it compares with others, and how it grows.

**The limit** is bare onnxruntime on the same cores: the same graph with every output, one thread a core, texts that
were tokenized, sorted by length and padded beforehand, at most 512 tokens in a pass. No tokenizer, no network, no
waiting. It is measured before and after every load, since a shared machine is not as fast at all times; a *share of the
limit* is of the mean of the two.

**The client** runs on the same cores and takes CPU time from the server. *Client, cores* says how much of them;
*without the client* is the share of what was left: where it took 0.1 of 2 cores, the throughput over 1.9 / 2 of the
limit.

Every number is a median over the rounds, with the lowest and the highest in brackets. Rounds are interleaved. Latencies
are what the client saw: of a message, from sending it to its last answer; under a Poisson load from the moment when it
was due, so that a client that is held up hides nothing."""

# Of a table of loads: its title and its file.
SERVING = {"int8": "serving-int8", "fp32": "serving-fp32", "int8, one text in ten of four": "serving-long"}
# Of a sweep: its title, that of its places, and what it is.
GROWTH: dict[str, tuple[str, str, str]] = {
    "streams": (
        "Streams",
        "streams",
        """Bidirectional streams over one connection, each with one text on its way. *Least* and *most*: the fewest and
the most texts that any stream was answered, over the mean; with few texts for each, chance is a part of that.""",
    ),
    "lengths": (
        "Length of the texts",
        "tokens of a text",
        "Texts of exactly so many tokens, 32 in a message of one stream, up to 256 on their way.",
    ),
    "heads": (
        "Heads",
        "heads",
        """Softmax heads of six labels and sigmoid heads in turns on one all-MiniLM-L6-v2, which nobody trained; 32
texts in a message of one stream, 256 on their way. The limit computes every head, also for the embedding alone.""",
    ),
    "shapes": (
        "Memory over changing shapes",
        "messages",
        """One server; messages of 1 to 64 texts, each of 3 to 256 tokens (or what the model reads), at random, one
after the other.""",
    ),
}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where the page is another")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of figures to read")
    parser.add_argument("--output", type=Path, default=PAGE, help="page to write; plots go to a folder called like it")
    arguments = parser.parse_args()
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(arguments.results.glob("*.json"))}
    plots = arguments.output.with_suffix("")
    text = page(reports, plots.name)
    if not arguments.check:
        from .figures import draw

        draw(reports, plots)
        arguments.output.write_text(text, encoding="utf-8")
    elif not arguments.output.exists() or arguments.output.read_text(encoding="utf-8") != text:
        sys.exit(f"{arguments.output.name} is not what the figures give: run python bench/report/page.py")


def page(reports: Mapping[str, Report], plots: str) -> str:
    """The page for what was measured; ``plots`` is the folder of the plots, seen from the page."""
    blocks = [INTRODUCTION, *_repeat(reports)]
    for section in SECTIONS:
        blocks += section(reports, plots)
    return "\n\n".join(blocks) + "\n"


def _repeat(reports: Mapping[str, Report]) -> Iterator[str]:
    commands = [_command(reports[name]) for name in MEASURED if name in reports]
    if commands:
        yield "**To repeat it all**, on a machine that does nothing else:"
        steps = ["make export", *(f".venv/bin/{command}" for command in commands)]
        mark = "<!-- not run: an hour, on a machine that does nothing else -->"
        yield "\n".join(
            [mark, "```console", *(f"$ {step}" for step in [*steps, ".venv/bin/python bench/report/page.py"]), "```"]
        )


def _serving(reports: Mapping[str, Report], plots: str) -> Iterator[str]:
    found = {title: reports[name] for title, name in SERVING.items() if name in reports}
    if not found:
        return
    yield "## Throughput and latency"
    yield f"![Share of the limit by load]({plots}/serving.svg)"
    yield f"![Latency by load, p50 to p99]({plots}/latency.svg)"
    for title, report in found.items():
        yield f"### {title}"
        yield f"{_source(report)} {_limit([one['limit'] for one in report['loads'].values()])}"
        yield _table("load", report["loads"])


def _rivals(reports: Mapping[str, Report], plots: str) -> Iterator[str]:
    if not (report := reports.get("rivals")):
        return
    servers = report["servers"]
    yield "## Beside other servers"
    # The table below has the others.
    versions = {name: version for name, version in report["versions"].items() if name not in servers}
    source = _source({**report, "versions": versions})
    yield f"{source} {_limit([report['limit']])} One text in a message; each server at its best setting."
    lines = [f"| {name} | {one['version']} | {one['setting']} |" for name, one in servers.items()]
    yield "\n".join(["| server | version | setting |", "| --- | --- | --- |", *lines])
    yield f"![Other servers, by load]({plots}/rivals.svg)"
    for load in dict.fromkeys(load for one in servers.values() for load in one["loads"]):
        yield f"### {load}"
        yield _table("server", {name: one["loads"][load] for name, one in servers.items() if load in one["loads"]})
    if three := report.get("three_single_task_servers"):
        yield "### One server for three tasks, or three servers"
        yield f"{_sentence(three['note'])} The ratio was {_cell('ratio', three['ratio'])}."
        yield _table("three servers", three["loads"])
    if offline := dict(report.get("sentence_transformers_offline", {})):
        yield "### sentence-transformers, offline"
        yield _sentence(offline.pop("note"))
        yield _table("", {"whole list at once": offline})
    if left_out := report.get("left_out"):
        yield "Left out: " + "; ".join(f"{name}, {_without_folders(why)}" for name, why in left_out.items()) + "."


def _growth(reports: Mapping[str, Report], plots: str) -> Iterator[str]:
    if not (report := reports.get("growth")):
        return
    yield "## Growth"
    about_memory = "MB are the server's resident memory; but for changing shapes, every row had a server of its own."
    yield f"{_source(report)} {about_memory}"
    for sweep, (title, place_title, about) in GROWTH.items():
        if sweep not in report["sweeps"]:
            continue
        yield f"### {title}"
        yield about
        yield f"![{title}]({plots}/growth-{sweep}.svg)"
        for name, rows in report["sweeps"][sweep].items():
            if len(report["sweeps"][sweep]) > 1:
                yield f"**{_sentence(name)}**"
            yield _table(place_title, rows)


def _start(reports: Mapping[str, Report], _: str) -> Iterator[str]:
    if not (report := reports.get("start")):
        return
    yield "## Start and idling"
    yield _source(report)
    yield _table("server", report["servers"])


def _workers(reports: Mapping[str, Report], _: str) -> Iterator[str]:
    if not (report := reports.get("workers")):
        return
    yield "## Several workers"
    yield f"{_source(report)} Texts a second with `--workers`, over 8 connections, 64 texts in flight for each core:"
    yield _counts(
        "load",
        {
            load: {count: rates[0] for count, rates in ways.items()}
            for load, ways in report["measured_items_per_s"].items()
        },
    )
    costs = ", ".join(f"{name} {cost:g}" for name, cost in report["costs_us"].items())
    yield (
        "On more cores than there are here, simulated event by event (`bench/server/workers.py` says how, and what it leaves "
        f"out) with these costs in microseconds: {costs}. The interpreter is one line for a process: message, item and "
        "run wait in it; start and token are a core's."
    )
    for load, rows in report["simulated_items_per_s"].items():
        yield f"**{_sentence(load)}**"
        yield _counts("cores", rows)


def _anatomy(reports: Mapping[str, Report], _: str) -> Iterator[str]:
    if not (report := reports.get("anatomy")):
        return
    yield "## Where the time goes"
    yield f"{_source(report)} CPU microseconds for each text; [performance.md](performance.md) says what they mean."
    titles = {
        "bare_us": "bare onnxruntime",
        "compute_us": "compute threads",
        "event_loop_us": "event loop",
        "others_us": "gRPC's threads, tokenizer",
        "client_us": "client",
    }
    yield _counts(
        "load",
        {
            load: {title: figures[name] for name, title in titles.items()}
            for load, figures in report["cpu_us_per_text"].items()
        },
        "",
    )
    yield "One text in flight, medians in microseconds of the clock:"
    yield _counts("", {"one call": report["one_call_us"]}, "")


def _gpu(reports: Mapping[str, Report], _: str) -> Iterator[str]:
    engines = {"PyTorch": "gpu", "onnxruntime": "gpu-onnx"}
    found = {title: reports[name] for title, name in engines.items() if name in reports}
    if not found:
        return
    yield "## On a GPU"
    yield from (f"{title}: {_source(report)} The GPU: {report['gpu']}." for title, report in found.items())
    yield """Passes: milliseconds from token ids in memory to answers in memory, by texts and their tokens. *Bare* is
the model in PyTorch, an operator at a time; *engine* is the server's, whose PyTorch launches a small pass at once."""
    columns = {
        f"{title}, {variant}, {kind}": {shape: (one[f"{kind}_ms"],) * 3 for shape, one in figures["passes"].items()}
        for title, report in found.items()
        for variant, figures in report["variants"].items()
        for kind in (("bare", "engine") if title == "PyTorch" else ("engine",))
    }
    shapes = next(iter(columns.values()))
    yield _table("texts x tokens", {shape: {name: rows[shape] for name, rows in columns.items()} for shape in shapes})
    yield """Serving: each client is a process on the same cores. The limit is the bare model in PyTorch over texts that
were tokenized, sorted, padded and copied to the GPU beforehand: far more than the interpreter of one worker can take in
and hand out."""
    yield _table(
        "load",
        {
            f"{title}, {variant}: {load}": row
            for title, report in found.items()
            for variant, figures in report["variants"].items()
            for load, row in figures["serving"].items()
        },
    )
    limits = ", ".join(
        f"{figures['limit']['most']:,} texts/s in {variant} beside {title}"
        for title, report in found.items()
        for variant, figures in report["variants"].items()
    )
    answers = "; ".join(
        f"{title} in {variant}: {one['from_float32_on_cpu']:.1g} from PyTorch in fp32 on the CPU, "
        f"{one['batched_from_alone']:.1g} between a text in a batch and alone"
        for title, report in found.items()
        for variant, one in ((name, figures["answers"]) for name, figures in report["variants"].items())
    )
    yield f"The limit was {limits}. The largest differences of any number of 200 answers: {answers}."


def _counts(first: str, rows: Mapping[str, Mapping[str, float]], unit: str = " workers") -> str:
    """Numbers without ranges; a column for each key that any row has."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [[first, *(f"{key}{unit}" for key in columns)], ["---", *("--:" for _ in columns)]]
    lines += [[name, *(f"{row[key]:,.0f}" if key in row else "" for key in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# In the order of the page; another section is another function of the reports.
SECTIONS: tuple[Callable[[Mapping[str, Report], str], Iterator[str]], ...] = (
    _serving,
    _rivals,
    _anatomy,
    _workers,
    _growth,
    _start,
    _gpu,
)
MEASURED = (*SERVING.values(), "rivals", "anatomy", "workers", "growth", "start")


def _source(report: Report) -> str:
    """When, on what and by which command."""
    cpu = report.get("cpu", "")
    # Each extension contains those before it.
    machine = f"{report['cores']} cores" + (f" ({cpu if isinstance(cpu, str) else cpu[-1]})" if cpu else "")
    versions = ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items())
    variant = f"{report['variant']}, " if "variant" in report else ""
    rounds = f"median of {report['rounds']} rounds [lowest, highest]" if report.get("rounds", 1) > 1 else "one round"
    told = f", with {versions}" if versions else ""
    return f"`{_command(report)}` on {report['date']}: {variant}{rounds}, on {machine}{told}."


def _command(report: Report) -> str:
    return _without_folders(report["command"])


def _without_folders(text: str) -> str:
    """A text without the folders of the machine that it was written on."""
    return re.sub(r"(?<=[\s=])/\S*/", "", text)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _limit(limits: Sequence[Sequence[float]]) -> str:
    medians = sorted(median for median, _, _ in limits)
    lowest, highest = min(low for _, low, _ in limits), max(high for _, _, high in limits)
    return f"The limit was {medians[len(medians) // 2]:,.0f} [{lowest:,.0f}, {highest:,.0f}] texts/s."


def _table(first: str, rows: Rows) -> str:
    """A row for each name, a column for each figure that any row has."""
    there = {figure for row in rows.values() for figure in row} - UNTOLD
    if all(row.get("errors", (0, 0, 0))[2] == 0 for row in rows.values()):
        there.discard("errors")
    columns = [figure for figure in TITLES if figure in there] + sorted(there - set(TITLES))
    lines = [[first, *(TITLES.get(figure, figure) for figure in columns)], ["---", *("--:" for _ in columns)]]
    lines += [[name, *(_cell(figure, row.get(figure)) for figure in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(figure: str, values: Sequence[float] | None) -> str:
    if values is None:
        return ""
    digits = 0 if figure in WHOLE or (figure.endswith("_ms") and values[0] >= 100) else 1
    digits = digits if figure in WHOLE or figure.endswith("_ms") else 2
    median, low, high = (f"{value:,.{digits}f}" for value in values)
    return median if low == high else f"{median} [{low}, {high}]"


if __name__ == "__main__":
    main()

"""polyhead's server beside other servers of the same graph on the same cores.

    python -m bench.comparison.install
    python -m bench.comparison.compare --bundle build/demo/bundle --output bench/results/comparison.json
    python -m bench.comparison.compare --bundle build/demo/bundle --only mosec --rounds 1 --seconds 2   # a quick look
    python -m bench.comparison.compare --bundle build/demo/bundle --only mosec mlserver --protocols \
        --settings bench/results/comparison.json --output bench/results/protocols.json

Every server runs the same graph with the same tokens and session options in two single-thread workers, and must give
the same answers as polyhead, or it is skipped. Its client is what its users would choose, in a process of its own.

First each server is tried in several batching settings at 8 and 64 texts in flight; the setting with the best product
of both throughputs is kept; --settings takes it from an earlier result instead. Then rounds are interleaved: the
onnxruntime upper bound, one server, the upper bound, the next server. Loads are single texts with 1, 8 and 64 in
flight, and Poisson arrivals at fractions of polyhead's throughput with 64 in flight in the first round. The file holds
[median, lowest, highest] over the rounds.

With --protocols polyhead is measured in each of its protocols; over HTTP by the client that measures mosec, and in the
Open Inference Protocol by that of MLServer. OpenAI's and text-embeddings-inference's answers are embeddings only.

Two more measurements: unless --only is given, three polyhead servers side by side with one task requested from each,
against one server with all three tasks; and sentence-transformers offline, for a folder that polyhead-export --format
sentence-transformers wrote.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray
from polyhead_client import Client
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.results import Figures
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP, first_turn, read_texts
from bench.harness.upper_bound import UpperBound

from .launch import (
    OTHER_PROTOCOLS,
    POLYHEAD,
    SERVERS,
    Load,
    Protocol,
    Server,
    Setting,
    sentence_transformers_offline,
    three_polyheads,
)

# Tried for every server: no batching, and batches that fill a core at short and at long texts, with a short and a
# longer wait.
SETTINGS = (Setting(1, 0), Setting(4, 1), Setting(8, 1), Setting(16, 1), Setting(16, 5))
CLOSED_LOOPS = {f"{count} in flight": ("--in-flight", str(count)) for count in (1, 8, 64)}
TRIED_LOOPS = ("8 in flight", "64 in flight")
THREE_SERVERS = "three servers"
# With --protocols, the server that polyhead's protocols are compared with round by round.
_REFERENCE = "mosec"
_COMPARED_ANSWERS = 20
_MIN_COSINE = 0.999
_MAX_DIFFERENCE = 0.001
_POISSON_FRACTIONS = (0.5, 0.8)
_NOT_INSTALLED = "not installed; run python -m bench.comparison.install"
Start = Callable[[], AbstractContextManager[Load]]
_FAILURES = (subprocess.CalledProcessError, subprocess.TimeoutExpired)


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle that all servers run")
    parser.add_argument("--variant", default="int8", help="variant that all servers run (default: int8)")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="compare with these servers only")
    parser.add_argument("--protocols", action="store_true", help="measure polyhead in each of its protocols")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all servers (default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds per load (default: 5)")
    parser.add_argument("--tuning-seconds", type=float, default=3.0, help="measured seconds per setting (default: 3)")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="take batching settings from this result file")
    parser.add_argument("--rates", type=float, nargs="+", help="open loops at these texts per second, not fractions")
    parser.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=_POISSON_FRACTIONS,
        help="open loops at these fractions of polyhead's throughput (default: 0.5 0.8)",
    )
    parser.add_argument("--sentence-transformers", type=Path, metavar="FOLDER", help="measure it offline as well")
    add_output_flag(parser)
    arguments = parser.parse_args()
    report = Comparison(arguments, read_texts(arguments.texts)).run()
    print(table(report))
    results.write(arguments.output, report)


class Comparison:
    """One comparison: its arguments and the figures so far."""

    def __init__(self, arguments: argparse.Namespace, texts: Sequence[str]) -> None:
        self._arguments = arguments
        self._upper_bound = UpperBound(arguments.bundle, arguments.variant, first_turn(texts))
        # One before the first server, and one after each.
        self._upper_bounds: list[float] = []
        self._texts = texts
        self._found: dict[str, dict[str, list[Figures]]] = {}
        self._servers: dict[str, dict[str, Any]] = {}
        self._skipped: dict[str, str] = {}
        self._rates: dict[str, float] = {f"Poisson {rate:g}/s": rate for rate in arguments.rates or ()}
        self._offline: list[Figures] = []

    def run(self) -> dict[str, Any]:
        """Tunes and measures every server; returns the report."""
        arguments = self._arguments
        starts = self._starts()
        with tqdm(total=arguments.rounds * len(starts), desc="rounds", unit="server") as bar:
            for _ in range(arguments.rounds):
                for name, start in starts.items():
                    if name not in self._skipped:
                        self._measure(name, start)
                    bar.update()
                if arguments.sentence_transformers:
                    self._measure_offline(arguments.sentence_transformers)
        return self._report()

    def _starts(self) -> dict[str, Start]:
        """Returns what is measured in each round; servers alternate with polyhead's protocols."""
        arguments = self._arguments
        own: dict[str, Start] = {}
        for protocol in (POLYHEAD, *OTHER_PROTOCOLS) if arguments.protocols else (POLYHEAD,):
            if protocol.environment and not protocol.installed:
                self._skipped[protocol.name] = f"{_NOT_INSTALLED} {protocol.environment.name}"
            else:
                own[protocol.name] = self._own_starter(protocol)
                described = f"{protocol.words}; defaults"
                self._servers[protocol.name] = {"version": version("polyhead"), "setting": described}
        others: dict[str, Start] = {}
        servers = [one for one in SERVERS if not arguments.only or one.name in arguments.only]
        for server in tqdm(servers, "settings", unit="server"):
            if setting := self._tune(server):
                others[server.name] = self._starter(server, setting)
        pairs = itertools.zip_longest(own.items(), others.items())
        starts = dict(one for pair in pairs for one in pair if one)
        if not arguments.only:
            starts[THREE_SERVERS] = lambda: three_polyheads(arguments.bundle, arguments.variant)
        return starts

    def _own_starter(self, protocol: Protocol) -> Start:
        return lambda: protocol.serving(self._arguments.bundle, self._arguments.variant)

    def _starter(self, server: Server, setting: Setting) -> Start:
        return lambda: server.serving(self._arguments.bundle, self._arguments.variant, setting)

    def _tune(self, server: Server) -> Setting | None:
        """Returns the server's best setting; None if it is skipped."""
        if not server.installed:
            self._skipped[server.name] = f"{_NOT_INSTALLED} {server.name}"
            return None
        try:
            trials = self._earlier_trials(server.name) or self._trials(server)
        except _FAILURES as error:
            self._skipped[server.name] = _reason(server.name, error)
            return None
        best = max(trials, key=lambda setting: float(np.prod(trials[setting])))
        self._servers[server.name] = {
            "version": server.version,
            "setting": f"{server.protocol}; {best}",
            "trials_at_8_and_64_in_flight": {str(setting): rates for setting, rates in trials.items()},
        }
        return best

    def _trials(self, server: Server) -> dict[Setting, list[float]]:
        """Returns the throughput of each setting at 8 and 64 texts in flight."""
        trials: dict[Setting, list[float]] = {}
        seconds = self._arguments.tuning_seconds
        for setting in SETTINGS:
            with self._starter(server, setting)() as load:
                load.answers(self._arguments.texts, 1)
                loads = [load.run(self._arguments.texts, seconds, *CLOSED_LOOPS[name]) for name in TRIED_LOOPS]
                trials[setting] = [round(one["items_per_s"], 1) for one in loads]
        return trials

    def _earlier_trials(self, name: str) -> dict[Setting, list[float]]:
        """Returns the throughputs in the file of ``--settings``; none without a file, or for a server not in it."""
        if not self._arguments.settings:
            return {}
        servers = json.loads(self._arguments.settings.read_text())["servers"]
        trials = servers.get(name, {}).get("trials_at_8_and_64_in_flight", {})
        return {setting: trials[str(setting)] for setting in SETTINGS if str(setting) in trials}

    def _mismatch(self, load: Load) -> str | None:
        """Describes the first answer that differs from polyhead's; None if all are the same."""
        answers = load.answers(self._arguments.texts, _COMPARED_ANSWERS)
        for number, (reference, answer) in enumerate(zip(self._reference, answers, strict=True)):
            (embedding, topic, sentiment), (encoded, other_topic, other_sentiment) = reference, answer
            other = np.frombuffer(base64.b64decode(encoded), dtype="<f4")
            cosine = embedding @ other / np.linalg.norm(embedding) / np.linalg.norm(other)
            # Some protocols order the labels by probability.
            differences = [] if other_topic is None else list(np.sort(topic) - np.sort(other_topic))
            differences += [] if other_sentiment is None else [sentiment - other_sentiment]
            largest = max(map(abs, differences), default=0.0)
            if cosine < _MIN_COSINE or largest > _MAX_DIFFERENCE:
                figures = f"cosine {cosine:.4f}, probabilities up to {largest:.4f} apart"
                return f"its answer to text {number} differs from polyhead's: {figures}"
        return None

    @cached_property
    def _reference(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32], float]]:
        """The answers of polyhead to the texts that are compared."""
        manifest = bundle.load(self._arguments.bundle).manifest
        labels = next(head.labels for head in manifest.heads if head.kind == "softmax")
        with self._own_starter(POLYHEAD)() as load, Client(load.command[-1]) as client:
            answers: list[Any] = [one.unwrap() for one in client.analyze(self._texts[:_COMPARED_ANSWERS])]
        found = []
        for answer in answers:
            scores = {one.label: one.probability for one in answer.classification.scores}
            topic = np.array([scores[label] for label in labels], dtype=np.float32)
            found.append((answer.embedding, topic, answer.sentiment.probability))
        return found

    def _measure(self, name: str, start: Start) -> None:
        """Measures one server in one round, and the upper bound after it."""
        if not self._upper_bounds:
            self._upper_bounds.append(self._upper_bound.items_per_s(self._arguments.seconds))
        loads = dict(CLOSED_LOOPS) if name != THREE_SERVERS else {"64 in flight": CLOSED_LOOPS["64 in flight"]}
        figures: dict[str, Figures] = {}
        try:
            with start() as load:
                if mismatch := self._mismatch(load):
                    self._skipped[name] = mismatch
                    return
                for one, flags in loads.items():
                    figures[one] = load.run(self._arguments.texts, self._arguments.seconds, *flags)
                if name == "polyhead" and not self._rates:
                    capacity = figures["64 in flight"]["items_per_s"]
                    self._rates = {f"Poisson {part * 100:.0f} %": part * capacity for part in self._arguments.fractions}
                for one, rate in self._rates.items() if name != THREE_SERVERS else ():
                    figures[one] = load.run(self._arguments.texts, self._arguments.seconds, "--rate", str(rate))
                    figures[one]["rate"] = rate
        except _FAILURES as error:
            self._skipped[name] = _reason(name, error)
            return
        self._upper_bounds.append(self._upper_bound.items_per_s(self._arguments.seconds))
        around = statistics.fmean(self._upper_bounds[-2:])
        for one, found in figures.items():
            found["efficiency"] = found["items_per_s"] / around
            self._found.setdefault(name, {}).setdefault(one, []).append(found)

    def _measure_offline(self, folder: Path) -> None:
        before = self._upper_bound.items_per_s(self._arguments.seconds)
        found = sentence_transformers_offline(folder, self._arguments.texts)
        after = self._upper_bound.items_per_s(self._arguments.seconds)
        self._offline.append({**found, "efficiency": found["items_per_s"] / ((before + after) / 2)})

    def _report(self) -> dict[str, Any]:
        loads = {
            name: {one: results.spread_all(rounds) for one, rounds in by.items()} for name, by in self._found.items()
        }
        three = loads.pop(THREE_SERVERS, None)
        report: dict[str, Any] = {
            **results.provenance(("onnxruntime",)),
            "variant": self._arguments.variant,
            "rounds": self._arguments.rounds,
            "upper_bound": results.spread(self._upper_bounds),
            "servers": {name: {**self._servers[name], "loads": by} for name, by in loads.items()},
            "skipped": self._skipped,
        }
        if three and "polyhead" in loads:
            pairs = zip(*(self._found[name]["64 in flight"] for name in ("polyhead", THREE_SERVERS)), strict=False)
            ratio = results.spread([one["items_per_s"] / other["items_per_s"] for one, other in pairs])
            report["three_single_task_servers"] = {"loads": three, "ratio": ratio}
        if self._arguments.protocols and _REFERENCE in self._found:
            report[f"relative_to_{_REFERENCE}"] = self._relative(_REFERENCE)
        if self._offline:
            report["sentence_transformers_offline"] = results.spread_all(self._offline)
        return report

    def _relative(self, reference: str) -> dict[str, dict[str, list[float]]]:
        """Returns each throughput divided by that of a server in the same round; for open loops each p99."""
        relative: dict[str, dict[str, list[float]]] = {}
        for name, loads in self._found.items():
            for load, rounds in loads.items():
                figure = "p99_ms" if "rate" in rounds[0] else "items_per_s"
                pairs = zip(rounds, self._found[reference].get(load, []), strict=False)
                if ratios := [one[figure] / other[figure] for one, other in pairs]:
                    relative.setdefault(name, {})[load] = results.spread(ratios)
        return relative


def _reason(name: str, error: subprocess.SubprocessError) -> str:
    stderr = getattr(error, "stderr", None)
    last = (stderr if isinstance(stderr, str) else "").strip().splitlines()[-1:] or [str(error)]
    # polyhead's own log goes to the terminal.
    see = f"; see build/comparison/{name}.log" if any(name == server.name for server in SERVERS) else ""
    return f"failed: {last[0]}{see}"


def table(report: dict[str, Any]) -> str:
    """Formats the figures for a terminal."""
    lines = ["onnxruntime upper bound: {:.0f} [{:.0f}, {:.0f}] texts/s".format(*report["upper_bound"])]
    for name, one in report["servers"].items():
        lines += ["", f"{name} {one['version']}: {one['setting']}"]
        for load, figures in one["loads"].items():
            rate = "{:.0f} texts/s, {:.2f} [{:.2f}, {:.2f}]".format(figures["items_per_s"][0], *figures["efficiency"])
            ends = f"p50 {figures['p50_ms'][0]:.1f} ms, p99 {figures['p99_ms'][0]:.1f} ms"
            cpu = f"{figures['server_cpu_ms_per_text'][0]:.2f} ms CPU a text"
            lines.append(f"  {load:<16}{rate:<36}{ends}, {cpu}, {figures['errors'][0]:g} errors")
    for name, by in report.get(f"relative_to_{_REFERENCE}", {}).items():
        ratios = ", ".join("{}: {:.2f} [{:.2f}, {:.2f}]".format(load, *one) for load, one in by.items())
        lines.append(f"relative to {_REFERENCE}, throughput or p99: {name}: {ratios}")
    if three := report.get("three_single_task_servers"):
        lines += ["", "one server over three single-task servers: {:.2f} [{:.2f}, {:.2f}]".format(*three["ratio"])]
    if offline := report.get("sentence_transformers_offline"):
        efficiency = "{:.2f} [{:.2f}, {:.2f}]".format(*offline["efficiency"])
        lines += ["", f"sentence-transformers offline: efficiency {efficiency}"]
    lines += ["", *(f"skipped: {name}: {why}" for name, why in report["skipped"].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

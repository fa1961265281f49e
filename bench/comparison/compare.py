"""polyhead's server beside other servers of the same graph, as shares of bare onnxruntime on the same cores.

    python bench/comparison/install.py
    python bench/comparison/compare.py --bundle build/demo/bundle --output bench/results/rivals.json

Every rival serves the same graph with the same tokens, session options and answers, in two single-thread workers, and
is asked by a client that its users would take, a process of its own. First each rival is tried in several settings at 8
and 64 texts in flight; the setting with the best product of both throughputs is kept. A rival that answers otherwise
than polyhead is left out. Then rounds are interleaved: the limit, one server alone on the machine, the limit, the next
server. Loads are single texts with 1, 8 and 64 in flight, and open Poisson loops at rates that are shares of what
polyhead bore with 64 in flight in the first round. Medians over the rounds with their ranges are written.

Two more: three polyhead servers side by side, each asked for one task of every text, against one asked for all three;
and sentence-transformers offline, if given a folder that ``polyhead-export --format sentence-transformers`` wrote.
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray
from polyhead_client import Client
from polyhead_server.settings import usable_cores
from tqdm import tqdm

from bench.harness.texts import read
from bench.server.throughput import DEMO, Limit, spread

from .launch import SERVERS, Load, Rival, Setting, offline, polyhead, three_polyheads

# Tried for every rival: none, and batches that fill a core at short and at long texts, with little and with some wait.
SETTINGS = (Setting(1, 0), Setting(4, 1), Setting(8, 1), Setting(16, 1), Setting(16, 5))
CLOSED = {f"{count} in flight": ("--in-flight", str(count)) for count in (1, 8, 64)}
_CHECKED = 20
_LEAST_COSINE = 0.999
_SHARES = (0.5, 0.8)
Start = Callable[[], AbstractContextManager[Load]]
Figures = dict[str, float]
_FAILURES = (subprocess.CalledProcessError, subprocess.TimeoutExpired)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--variant", default="int8", help="variant that all serve (default: int8)")
    parser.add_argument("--texts", type=Path, default=DEMO, help="JSON lines with a field `text`, or a text a line")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these rivals")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all servers (default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds of a load (default: 5)")
    parser.add_argument(
        "--tuning-seconds", type=float, default=3.0, help="the same, for a setting's trial (default: 3)"
    )
    parser.add_argument("--rates", type=float, nargs="+", help="texts a second of the open loops, instead of shares")
    parser.add_argument("--sentence-transformers", type=Path, metavar="FOLDER", help="measure it offline as well")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    texts = [row["text"] for row in read(arguments.texts)]
    report = Bench(arguments, texts).run()
    print(table(report))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


class Bench:
    """One measurement: what was asked for, and what was found so far."""

    def __init__(self, arguments: argparse.Namespace, texts: Sequence[str]) -> None:
        self._arguments = arguments
        self._limit = Limit(arguments.bundle, arguments.variant, texts)
        self._limits: list[float] = []
        self._texts = texts
        self._found: dict[str, dict[str, list[Figures]]] = {}
        self._about: dict[str, dict[str, Any]] = {"polyhead": {"version": version("polyhead"), "setting": "defaults"}}
        self._left_out: dict[str, str] = {}
        self._rates: dict[str, float] = {f"Poisson {rate:g}/s": rate for rate in arguments.rates or ()}
        self._offline: list[Figures] = []

    def run(self) -> dict[str, Any]:
        """Tunes, measures and sums up."""
        arguments = self._arguments
        starts: dict[str, Start] = {"polyhead": lambda: polyhead(arguments.bundle, arguments.variant)}
        rivals = [one for one in SERVERS if not arguments.only or one.name in arguments.only]
        for rival in tqdm(rivals, "settings", unit="rival"):
            if setting := self._tuned(rival):
                starts[rival.name] = self._starter(rival, setting)
        starts["three servers"] = lambda: three_polyheads(arguments.bundle, arguments.variant)
        with tqdm(total=arguments.rounds * len(starts), desc="rounds", unit="server") as bar:
            for _ in range(arguments.rounds):
                for name, start in starts.items():
                    if name not in self._left_out:
                        self._measure(name, start)
                    bar.update()
                if arguments.sentence_transformers:
                    self._measure_offline(arguments.sentence_transformers)
        return self._report()

    def _starter(self, rival: Rival, setting: Setting) -> Start:
        return lambda: rival.serving(self._arguments.bundle, self._arguments.variant, setting)

    def _tuned(self, rival: Rival) -> Setting | None:
        """The rival's best setting; None when it is left out."""
        if not rival.installed:
            self._left_out[rival.name] = f"not installed; run python bench/comparison/install.py {rival.name}"
            return None
        tried: dict[Setting, list[float]] = {}
        try:
            for setting in SETTINGS:
                with self._starter(rival, setting)() as load:
                    if difference := self._difference(load.answers(self._arguments.texts, _CHECKED)):
                        self._left_out[rival.name] = difference
                        return None
                    seconds = self._arguments.tuning_seconds
                    loads = [
                        load.put(self._arguments.texts, seconds, *CLOSED[name])
                        for name in ("8 in flight", "64 in flight")
                    ]
                    tried[setting] = [round(one["items_per_s"], 1) for one in loads]
        except _FAILURES as error:
            self._left_out[rival.name] = _reason(rival.name, error)
            return None
        best = max(tried, key=lambda setting: float(np.prod(tried[setting])))
        self._about[rival.name] = {
            "version": rival.version,
            "setting": f"{rival.way}; {best}",
            "tried_8_and_64_in_flight": {str(setting): rates for setting, rates in tried.items()},
        }
        return best

    def _difference(self, answers: list[tuple[str, list[float], float]]) -> str | None:
        """What is different in a rival's answers; None when they are the same."""
        for number, (ours, theirs) in enumerate(zip(self._reference, answers, strict=True)):
            (embedding, topic, sentiment), (encoded, other_topic, other_sentiment) = ours, theirs
            other = np.frombuffer(base64.b64decode(encoded), dtype="<f4")
            cosine = embedding @ other / np.linalg.norm(embedding) / np.linalg.norm(other)
            labels = topic.argmax() == np.argmax(other_topic) and (sentiment >= 0.5) == (other_sentiment >= 0.5)
            if cosine < _LEAST_COSINE or not labels:
                return f"answers otherwise than polyhead to text {number}: cosine {cosine:.4f}, same labels: {labels}"
        return None

    @cached_property
    def _reference(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32], float]]:
        """What polyhead answers to the texts that are compared."""
        manifest = bundle.load(self._arguments.bundle).manifest
        labels = next(head.labels for head in manifest.heads if head.kind == "softmax")
        with polyhead(self._arguments.bundle, self._arguments.variant) as load, Client(load.command[-1]) as client:
            results: list[Any] = [answer.unwrap() for answer in client.analyze(self._texts[:_CHECKED])]
        found = []
        for result in results:
            scores = {one.label: one.probability for one in result.classification.scores}
            topic = np.array([scores[label] for label in labels], dtype=np.float32)
            found.append((result.embedding, topic, result.sentiment.probability))
        return found

    def _measure(self, name: str, start: Start) -> None:
        """A server's loads in one round, between two limits."""
        before = self._limit.items_per_s(self._arguments.seconds)
        loads = dict(CLOSED) if name != "three servers" else {"64 in flight": CLOSED["64 in flight"]}
        figures: dict[str, Figures] = {}
        try:
            with start() as load:
                load.answers(self._arguments.texts, 1)
                for one, flags in loads.items():
                    figures[one] = load.put(self._arguments.texts, self._arguments.seconds, *flags)
                if name == "polyhead" and not self._rates:
                    capacity = figures["64 in flight"]["items_per_s"]
                    self._rates = {f"Poisson {share:.0%}".replace("%", " %"): share * capacity for share in _SHARES}
                for one, rate in self._rates.items() if name != "three servers" else ():
                    figures[one] = load.put(self._arguments.texts, self._arguments.seconds, "--rate", str(rate))
                    figures[one]["rate"] = rate
        except _FAILURES as error:
            self._left_out[name] = _reason(name, error)
            return
        after = self._limit.items_per_s(self._arguments.seconds)
        self._limits += [before, after]
        for one, found in figures.items():
            found["share"] = found["items_per_s"] / ((before + after) / 2)
            self._found.setdefault(name, {}).setdefault(one, []).append(found)

    def _measure_offline(self, folder: Path) -> None:
        before = self._limit.items_per_s(self._arguments.seconds)
        found = offline(folder, self._arguments.texts)
        after = self._limit.items_per_s(self._arguments.seconds)
        self._offline.append({**found, "share": found["items_per_s"] / ((before + after) / 2)})

    def _report(self) -> dict[str, Any]:
        loads = {name: {one: _spread(rounds) for one, rounds in by.items()} for name, by in self._found.items()}
        three = loads.pop("three servers", None)
        report: dict[str, Any] = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": " ".join(["python", *sys.argv]),
            "variant": self._arguments.variant,
            "rounds": self._arguments.rounds,
            "cores": usable_cores(),
            "cpu": np.show_config("dicts")["SIMD Extensions"]["found"],
            "versions": {
                "python": sys.version.split()[0],
                "onnxruntime": version("onnxruntime"),
                **{name: about["version"] for name, about in self._about.items()},
            },
            "limit": spread(self._limits),
            "servers": {name: {**self._about[name], "loads": by} for name, by in loads.items()},
            "left_out": self._left_out,
        }
        if three and "polyhead" in loads:
            pairs = zip(
                self._found["polyhead"]["64 in flight"], self._found["three servers"]["64 in flight"], strict=False
            )
            report["three_single_task_servers"] = {
                "note": "three polyhead servers on the same cores, each asked for one task of every text; a text "
                "counts when all three have answered; ratio: one server asked for all three, over them, round by round",
                "loads": three,
                "ratio": spread([one["items_per_s"] / other["items_per_s"] for one, other in pairs]),
            }
        if self._offline:
            report["sentence_transformers_offline"] = {
                "note": "its own ONNX export and 8-bit quantization of the same model, embeddings alone, two threads",
                **_spread(self._offline),
            }
        return report


def _spread(rounds: Sequence[Figures]) -> dict[str, list[float]]:
    return {figure: spread([one[figure] for one in rounds]) for figure in rounds[0]}


def _reason(name: str, error: subprocess.SubprocessError) -> str:
    said = getattr(error, "stderr", None)
    last = (said if isinstance(said, str) else "").strip().splitlines()[-1:] or [str(error)]
    return f"failed: {last[0]}; its log is build/rivals/{name}.log"


def table(report: dict[str, Any]) -> str:
    """The figures for a terminal."""
    lines = ["limit: {:.0f} [{:.0f}, {:.0f}] texts/s".format(*report["limit"])]
    for name, one in report["servers"].items():
        lines += ["", f"{name} {one['version']}: {one['setting']}"]
        for load, figures in one["loads"].items():
            rate = "{:.0f}/s, {:.2f} [{:.2f}, {:.2f}]".format(figures["items_per_s"][0], *figures["share"])
            ends = f"p50 {figures['p50_ms'][0]:.1f} ms, p99 {figures['p99_ms'][0]:.1f} ms"
            lines.append(f"  {load:<16}{rate:<30}{ends}, {figures['errors'][0]:g} errors")
    if three := report.get("three_single_task_servers"):
        lines += ["", "one server for three tasks over three servers: {:.2f} [{:.2f}, {:.2f}]".format(*three["ratio"])]
    if alone := report.get("sentence_transformers_offline"):
        lines += ["", "sentence-transformers offline: {:.2f} [{:.2f}, {:.2f}] of the limit".format(*alone["share"])]
    lines += ["", *(f"left out: {name}: {why}" for name, why in report["left_out"].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

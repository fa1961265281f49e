"""From which size on several worker processes pay: measured on this machine, simulated for machines with more cores.

One process answers with one interpreter: whatever Python does for messages, items and passes waits in one line, while
passes run side by side in native code. The simulation has that line, the cores, and the queue from which passes take
what waits, up to so many tokens; it knows nothing of caches, memory bandwidth or the network. Its costs are flags,
measured by bench/server/latency_breakdown.py. Connections are spread evenly, 64 texts are in flight for each core.

    python bench/server/workers.py --bundle build/demo/bundle --output bench/results/workers.json
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import shlex
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polyhead_server.settings import usable_cores
from tqdm import tqdm

from bench.harness.servers import serving

from .throughput import DEMO, put_loads, spread

CORES = (2, 4, 8, 16, 32, 64)
WORKERS = (1, 2, 4, 8, 16)
IN_FLIGHT_PER_CORE = 64
SECONDS = 5.0
# What a load is called, and the texts of a message.
MESSAGES = {"unary, 1 item": 1, "stream, 8 items": 8, "stream, 32 items": 32}


@dataclass(frozen=True)
class Costs:
    """Microseconds.

    Attributes:
        message: Interpreter, for each message, both ways.
        item: Interpreter, for each text.
        run: Interpreter, for each pass.
        start: A core, for each pass.
        token: A core, for each token.
    """

    message: float
    item: float
    run: float
    start: float
    token: float


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="bundle to measure with; without it there is only the simulation")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the measurement (default: 3)")
    parser.add_argument("--workers", type=int, nargs="+", help="workers to measure (default: 1 and one a core)")
    parser.add_argument("--clients", type=int, default=1, help="client processes that share a load (default: 1)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds of a load (default: 5)")
    parser.add_argument("--message-us", type=float, default=500.0, help="interpreter, each message (default: 500)")
    parser.add_argument("--item-us", type=float, default=160.0, help="interpreter, each text (default: 160)")
    parser.add_argument("--run-us", type=float, default=300.0, help="interpreter, each pass (default: 300)")
    parser.add_argument("--start-us", type=float, default=1000.0, help="a core, each pass (default: 1000)")
    parser.add_argument("--token-us", type=float, default=95.0, help="a core, each token (default: 95)")
    parser.add_argument("--tokens", type=int, default=39, help="tokens of a text in the mean (default: 39)")
    parser.add_argument("--pass-tokens", type=int, default=256, help="tokens of a pass (default: 256)")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    costs = Costs(*(getattr(arguments, f"{name}_us") for name in ("message", "item", "run", "start", "token")))
    report: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "cores": usable_cores(),
        "costs_us": vars(costs),
        "simulated_items_per_s": simulated(costs, arguments.tokens, arguments.pass_tokens),
    }
    if arguments.bundle:
        report["measured_items_per_s"] = measured(arguments)
    print(table(report["simulated_items_per_s"]))
    for load, ways in report.get("measured_items_per_s", {}).items():
        print(f"measured: {load}: " + ", ".join(f"{workers} workers {rate[0]:.0f}/s" for workers, rate in ways.items()))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def simulated(costs: Costs, tokens: int, pass_tokens: int) -> dict[str, dict[str, dict[str, float]]]:
    """Texts a second: by load, cores and workers."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for load, items in MESSAGES.items():
        for cores in CORES:
            rates: dict[str, float] = {}
            for workers in (count for count in WORKERS if count <= cores):
                # Workers that share nothing are all alike: one of them is simulated.
                process = Process(costs, cores // workers, items, tokens, pass_tokens)
                rates[str(workers)] = round(workers * process.items_per_s())
            found.setdefault(load, {})[str(cores)] = rates
    return found


class Process:
    """One process in a closed loop, event by event."""

    def __init__(self, costs: Costs, cores: int, items: int, tokens: int, pass_tokens: int) -> None:
        self._costs = costs
        self._idle_cores = cores
        self._items = items
        self._pass_tokens = pass_tokens
        self._chance = random.Random(0)
        self._tokens = tokens
        self._now = 0.0
        self._answered = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._line: deque[tuple[float, Callable[[], None]]] = deque()
        self._interpreter_is_free = True
        # The texts that wait: their tokens, and what is left unanswered of their message.
        self._waiting: deque[tuple[int, list[int]]] = deque()
        self._messages = max(1, cores * IN_FLIGHT_PER_CORE // items)

    def items_per_s(self) -> float:
        """Runs for ``SECONDS`` of simulated time."""
        for _ in range(self._messages):
            self._send()
        while self._events and self._now < SECONDS * 1e6:
            self._now, _, event = heapq.heappop(self._events)
            event()
        return self._answered / (self._now / 1e6)

    def _after(self, us: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + us, next(self._numbers), event))

    def _interpret(self, us: float, then: Callable[[], None]) -> None:
        """Stands in line for the interpreter."""
        self._line.append((us, then))
        self._next_in_line()

    def _next_in_line(self) -> None:
        if self._interpreter_is_free and self._line:
            us, then = self._line.popleft()
            self._interpreter_is_free = False

            def done() -> None:
                self._interpreter_is_free = True
                then()
                self._next_in_line()

            self._after(us, done)

    def _send(self) -> None:
        # Half of a message's cost is its way in, the other half its way out.
        self._interpret(self._costs.message / 2 + self._items * self._costs.item / 2, self._enqueue)

    def _enqueue(self) -> None:
        left = [self._items]
        for _ in range(self._items):
            self._waiting.append((max(3, round(self._chance.gammavariate(4, self._tokens / 4))), left))
        self._start_passes()

    def _start_passes(self) -> None:
        while self._idle_cores and self._waiting:
            self._idle_cores -= 1
            batch = [self._waiting.popleft()]
            tokens = batch[0][0]
            while self._waiting and tokens + self._waiting[0][0] <= self._pass_tokens:
                tokens += self._waiting[0][0]
                batch.append(self._waiting.popleft())
            self._run(batch, tokens)

    def _run(self, batch: list[tuple[int, list[int]]], tokens: int) -> None:
        compute_us = self._costs.start + self._costs.token * tokens

        def computed() -> None:
            self._interpret(self._costs.run / 2, answered)

        def answered() -> None:
            self._idle_cores += 1
            for _, left in batch:
                left[0] -= 1
                if not left[0]:
                    self._interpret(self._costs.message / 2 + self._items * self._costs.item / 2, self._answer)
            self._start_passes()

        self._interpret(self._costs.run / 2, lambda: self._after(compute_us, computed))

    def _answer(self) -> None:
        self._answered += self._items
        self._send()


def measured(arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Texts a second on this machine, in rounds of one worker and one for each core, over several connections."""
    counts = arguments.workers or (1, usable_cores())
    found: dict[str, dict[str, list[float]]] = {load: {str(count): [] for count in counts} for load in MESSAGES}
    with tqdm(total=arguments.rounds * len(counts) * len(MESSAGES), unit="load") as bar:
        for _ in range(arguments.rounds):
            for count in counts:
                flags = ("--workers", str(count), "--max-batch-tokens", str(arguments.pass_tokens))
                with serving(arguments.bundle, *flags) as target:
                    for load, items in MESSAGES.items():
                        way = ("--way", load.partition(",")[0], "--items", str(items), "--connections", "8")
                        load_flags = (
                            *way,
                            "--in-flight",
                            str(IN_FLIGHT_PER_CORE * usable_cores() // arguments.clients),
                        )
                        figures = put_loads(target, DEMO, arguments.seconds, arguments.clients, load_flags)
                        found[load][str(count)].append(figures["items_per_s"])
                        bar.update()
    return {load: {count: spread(rates) for count, rates in ways.items()} for load, ways in found.items()}


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The simulation for a terminal."""
    lines = [f"{'simulated, texts/s':<20}{'cores':>6}" + "".join(f"{f'{count} workers':>12}" for count in WORKERS)]
    for load, rows in found.items():
        for cores, rates in rows.items():
            lines.append(f"{load:<20}{cores:>6}" + "".join(f"{rates.get(str(count), ''):>12}" for count in WORKERS))
    return "\n".join(lines)


if __name__ == "__main__":
    main()

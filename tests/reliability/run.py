"""Makes everything go wrong that may go wrong with a server, and writes down what came of it: docs/reliability.md.

Each fault program starts real servers, lets traffic of the shipped client flow, records each item with its answer and
holds it against the answer of the engine run alone. A finding counts only where enough traffic flowed before and after
the fault; and each has a control, the same without what is to protect, which must fail, or the program could not have
seen a failure.

    python -m tests.reliability.run --bundle build/demo/bundle                       # all of it, half an hour on two cores
    python -m tests.reliability.run --bundle build/demo/bundle --quick               # a little, less than five minutes
    python -m tests.reliability.run --bundle build/demo/bundle --only "killed workers" --only reloads

The figures go to bench/results/reliability.json, where what was not run keeps its old ones, and the page is made of
them. Quick runs write nothing unless told where; they leave out the programs whose verdicts hang on a clock, unless
``--only`` names them, so that they say the same beside other work: CI runs them. Programs that work on published texts
look for them in the folder that POLYHEAD_DATA names, and are not run without. Ends with 1 where anything was not as
expected.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib
import json
import os
import random
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polyhead_server.settings import usable_cores

from bench.harness.texts import DEMO_TEXTS, read

from .corrupt_bundle_fixture import with_another_head
from .external_corpora import NotAvailableError
from .reference_answers import ReferenceAnswers
from .report import page
from .scenario import SCENARIOS, Context, Scenario, Verdict

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench/results/reliability.json"
PAGE = ROOT / "docs/reliability.md"
# The order of the table.
MODULES = (
    "restarts_and_reloads",
    "corrupt_bundles",
    "worker_crashes",
    "overload",
    "resource_abuse",
    "adversarial_inputs",
    "multilingual_inputs",
    "response_isolation",
    "malformed_messages",
    "network",
    "tls",
    "process_failures",
    "cancellation",
    "engine_failures",
    "interrupted_writes",
    "disk_full",
    "soak",
)
TEXTS = 200


def main() -> None:
    """Runs the command line."""
    for module in MODULES:
        importlib.import_module(f"{__package__}.{module}")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument(
        "--only", action="append", choices=SCENARIOS, metavar="FAULT", help=f"one of {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--quick", action="store_true", help="a little of each fault whose verdict hangs on no clock")
    parser.add_argument(
        "--soak-minutes",
        type=float,
        metavar="N",
        help="length of the soak (default: 4; with --quick an eighth of one); from 30 on its memory has a slope",
    )
    parser.add_argument("--output", type=Path, help=f"file for the figures (default: {RESULTS.name}, with its page)")
    arguments = parser.parse_args()
    # As Ctrl-C does: the servers that were started are ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    output = arguments.output or (None if arguments.quick else RESULTS)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", "tests.reliability.run", *sys.argv[1:]]),
        "cores": usable_cores(),
        "quick": arguments.quick,
        "faults": json.loads(output.read_text())["faults"] if output and output.exists() else {},
    }

    def save(name: str, found: dict[str, Any]) -> None:
        known = {**report["faults"], name: found}
        report["faults"] = {name: known[name] for name in SCENARIOS if name in known}
        if output:
            output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if output == RESULTS:
            PAGE.write_text(page(report), encoding="utf-8")

    bad = asyncio.run(run_all(arguments, save))
    if bad:
        sys.exit(f"not as expected: {', '.join(bad)}")


async def run_all(arguments: argparse.Namespace, save: Callable[[str, dict[str, Any]], None]) -> list[str]:
    """Runs the fault programs that are asked for; returns those that saw another thing."""
    texts = [row["text"] for row in read(DEMO_TEXTS)]
    texts = random.Random(0).sample(texts, min(TEXTS, len(texts)))
    names = arguments.only or asked_for(arguments.quick)
    # What no clock decides may run beside another; half of it waits for something else than a core.
    turns = asyncio.Semaphore(2 if arguments.quick and not any(SCENARIOS[name].timed for name in names) else 1)
    bad: list[str] = []
    soak_s = 60 * (arguments.soak_minutes or (1 / 8 if arguments.quick else 4))
    with tempfile.TemporaryDirectory(prefix="polyhead-reliability-") as folder:
        other = with_another_head(arguments.bundle, Path(folder) / "other")
        reference_answers = ReferenceAnswers([arguments.bundle, other])
        reference_answers.learn(texts)

        async def run(name: str) -> None:
            scratch = Path(folder) / name.replace(" ", "-")
            scratch.mkdir()
            context = Context(
                arguments.bundle.resolve(), other, reference_answers, texts, scratch, arguments.quick, soak_s
            )
            async with turns:
                try:
                    found = await run_one(SCENARIOS[name], context)
                except NotAvailableError as error:
                    print(f"{name}: not run: {error}", flush=True)
                    return
            save(name, found)
            good = found["passed"] and found["control_failed"]
            bad.extend([] if good else [name])
            mark = "as expected" if good else "NOT AS EXPECTED"
            print(f"{name}: {mark} in {found['seconds']} s\n  {found['seen']}\n  control: {found['control']}")
            print(f"  {found['figures']}", flush=True)

        await asyncio.gather(*map(run, names))
    return bad


def asked_for(quick: bool) -> list[str]:
    """The fault programs of a run that names none."""
    left_out = [name for name, one in SCENARIOS.items() if quick and one.timed]
    if left_out:
        print(f"left out, as their verdicts hang on a clock: {', '.join(left_out)}", flush=True)
    return [name for name in SCENARIOS if name not in left_out]


async def run_one(scenario: Scenario, context: Context) -> dict[str, Any]:
    """What came of a fault; a program that breaks is a finding as well.

    Raises:
        NotRunError: The texts that it works on are not on this machine.
    """
    began, others = time.monotonic(), os.getloadavg()[0]
    try:
        finding = await scenario.program(context)
    except NotAvailableError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the others are still to be run
        traceback.print_exc()
        finding = Verdict(seen=f"the program broke: {type(error).__name__}: {error}", passed=False)
    figures = finding.figures.items()
    return {
        "fault": scenario.fault,
        "expected": scenario.expected,
        **dataclasses.asdict(finding),
        "figures": {key: value if isinstance(value, int) else float(f"{value:.4g}") for key, value in figures},
        "seconds": round(time.monotonic() - began),
        # What else ran on the machine when it began: times are worth as much as that is little.
        "load_average": round(others, 1),
    }


if __name__ == "__main__":
    main()

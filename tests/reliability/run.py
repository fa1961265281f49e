"""Injects faults into real servers, checks how they behave, and writes docs/reliability.md.

Each scenario starts real servers, sends traffic with the shipped client, and compares each answer with the answer of
the engine alone. A verdict counts only if enough traffic flowed before and after the fault. Each scenario has a
control, which repeats it without the protection under test and must fail; otherwise the scenario could not have
detected a failure.

    python -m tests.reliability.run --bundle build/demo/bundle            # everything: half an hour on two cores
    python -m tests.reliability.run --bundle build/demo/bundle --quick    # a short run: less than five minutes
    python -m tests.reliability.run --bundle build/demo/bundle --only "killed workers" --only reloads
    python -m tests.reliability.run --write-page                          # only writes the page from stored results

Results are stored in bench/results/reliability.json, and the page is generated from that file; scenarios that were not
run keep their previous results. Quick runs store nothing unless --output is given. They skip the scenarios whose
verdict depends on timing, unless --only names them, so that the outcome does not depend on other work on the machine;
CI runs them. A quick run has two scenarios at a time (--at-once); one that fails is repeated, and that decides.
Scenarios on external corpora read them from the directory in POLYHEAD_DATA and are skipped without it.
The exit code is 1 if any scenario did not behave as expected.
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
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polyhead_server.settings import usable_cores

from bench.harness import source
from bench.harness.texts import DEMO_TEXTS, read_texts

from .external_corpora import CorpusNotAvailableError
from .recalibrated_bundle import write_bundle_with_other_head
from .reference_answers import ReferenceAnswers
from .report import RESULTS, write_page
from .scenario import SCENARIOS, Context, Scenario, Verdict

# In the order of the table.
MODULES = (
    "restarts_and_reloads",
    "corrupt_bundles",
    "worker_crashes",
    "fronts",
    "candidates",
    "overload",
    "resource_abuse",
    "misbehaving_clients",
    "adversarial_inputs",
    "expensive_requests",
    "multilingual_inputs",
    "response_isolation",
    "malformed_messages",
    "network",
    "tls",
    "process_failures",
    "log_and_metrics",
    "hung_operations",
    "cancellation",
    "engine_failures",
    "interrupted_writes",
    "disk_full",
    "soak",
)
MAX_TEXTS = 200
FULL_SOAK_MINUTES = 4.0
QUICK_SOAK_MINUTES = 1 / 8

Save = Callable[[str, dict[str, Any]], None]


def load_scenarios() -> None:
    """Registers every scenario."""
    for module in MODULES:
        importlib.import_module(f"{__package__}.scenarios.{module}")


def main() -> None:
    """Runs the command line."""
    load_scenarios()
    arguments = _parse(sys.argv[1:])
    if arguments.write_page:
        write_page()
        return
    # Same as Ctrl-C, so that the servers are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = asyncio.run(run_all(arguments, _make_save(arguments)))
    if failed:
        sys.exit(f"not as expected: {', '.join(failed)}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--bundle", type=Path, help="bundle to serve")
    task.add_argument("--write-page", action="store_true", help="only write the page from the stored results")
    parser.add_argument(
        "--only", action="append", choices=SCENARIOS, metavar="SCENARIO", help=f"one of {', '.join(SCENARIOS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="run a small part of each scenario whose verdict does not depend on timing"
    )
    parser.add_argument(
        "--at-once", type=int, metavar="N", help="scenarios at a time (default: 2 with --quick without timing, else 1)"
    )
    parser.add_argument(
        "--soak-minutes",
        type=float,
        metavar="N",
        help="duration of the soak (default: 4, with --quick 0.125); from 30 on, memory growth is reported as a slope",
    )
    parser.add_argument("--output", type=Path, help=f"file for the results (default: {RESULTS.name} and its page)")
    return parser.parse_args(argv)


def _make_save(arguments: argparse.Namespace) -> Save:
    """Returns a function that stores the result of one scenario, and updates the page with the default output."""
    output = arguments.output or (None if arguments.quick else RESULTS)
    results = json.loads(output.read_text(encoding="utf-8"))["scenarios"] if output and output.exists() else {}

    def save(name: str, result: dict[str, Any]) -> None:
        results[name] = result | {"commit": source.head()}
        commits = [one.get("commit", "") for one in results.values()]
        report = {
            "date": datetime.now(UTC).date().isoformat(),
            "commit": source.of_all(commits, program="tests.reliability.run"),
            "command": shlex.join(["python", "-m", "tests.reliability.run", *sys.argv[1:]]),
            "cores": usable_cores(),
            "quick": arguments.quick,
            "scenarios": {name: results[name] for name in SCENARIOS if name in results},
        }
        if output:
            output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if output == RESULTS:
            write_page()

    return save


async def run_all(arguments: argparse.Namespace, save: Save) -> list[str]:
    """Runs the selected scenarios; returns the names of those that did not behave as expected."""
    texts = read_texts(DEMO_TEXTS)
    texts = random.Random(0).sample(texts, min(MAX_TEXTS, len(texts)))
    names = arguments.only or select_scenarios(arguments.quick)
    # Two scenarios without timing may run at once; half of the time they wait for something other than a core.
    untimed = arguments.quick and not any(SCENARIOS[name].timed for name in names)
    slots = arguments.at_once or (2 if untimed else 1)
    soak_s = 60 * (arguments.soak_minutes or (QUICK_SOAK_MINUTES if arguments.quick else FULL_SOAK_MINUTES))
    with tempfile.TemporaryDirectory(prefix="polyhead-reliability-") as directory:
        bundle = arguments.bundle.resolve()
        other_bundle = write_bundle_with_other_head(bundle, Path(directory) / "other")
        reference_answers = ReferenceAnswers([bundle, other_bundle])
        reference_answers.precompute(texts)

        async def run(name: str, slots: asyncio.Semaphore, kind: str = "") -> bool:
            work_dir = Path(directory) / f"{name} {kind}".strip().replace(" ", "-")
            work_dir.mkdir()
            context = Context(bundle, other_bundle, reference_answers, texts, work_dir, arguments.quick, soak_s)
            async with slots:
                try:
                    result = await run_scenario(SCENARIOS[name], context)
                except CorpusNotAvailableError as error:
                    print(f"{name}: not run: {error}", flush=True)
                    return True
            save(name, result)
            as_expected = bool(result["passed"] and result["control_failed"])
            label = "as expected" if as_expected else "NOT AS EXPECTED"
            print(f"{name}: {label} in {result['seconds']} s\n  {result['observed']}\n  control: {result['control']}")
            print(f"  {result['figures']}", flush=True)
            return as_expected

        together = asyncio.Semaphore(slots)
        as_expected = await asyncio.gather(*(run(name, together) for name in names))
        failed = [name for name, passed in zip(names, as_expected, strict=True) if not passed]
        if untimed:
            # Whatever ran beside it may have taken the cores that a scenario needed.
            failed = [name for name in failed if not await run(name, asyncio.Semaphore(1), "alone")]
    return failed


def select_scenarios(quick: bool) -> list[str]:
    """Returns the scenarios of a run without --only."""
    skipped = [name for name, one in SCENARIOS.items() if quick and one.timed]
    if skipped:
        print(f"skipped because the verdict depends on timing: {', '.join(skipped)}", flush=True)
    return [name for name in SCENARIOS if name not in skipped]


async def run_scenario(scenario: Scenario, context: Context) -> dict[str, Any]:
    """Returns the result of a scenario; an exception in the scenario counts as a failure.

    Raises:
        CorpusNotAvailableError: The corpus that the scenario needs is not on this machine.
    """
    started, load_average = time.monotonic(), os.getloadavg()[0]
    try:
        verdict = await scenario.run(context)
    except CorpusNotAvailableError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the other scenarios must still run
        traceback.print_exc()
        verdict = Verdict(observed=f"the scenario raised {type(error).__name__}: {error}", passed=False)
    figures = verdict.figures.items()
    return {
        "fault": scenario.fault,
        "expected": scenario.expected,
        **dataclasses.asdict(verdict),
        "figures": {key: value if isinstance(value, int) else float(f"{value:.4g}") for key, value in figures},
        "seconds": round(time.monotonic() - started),
        # Load of the machine at the start: the higher it is, the less the measured times mean.
        "load_average": round(load_average, 1),
    }


if __name__ == "__main__":
    main()

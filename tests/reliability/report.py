"""The page of the findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEAD = """<!-- Written by `python -m tests.reliability.run`: change the programs, not this. -->
# Reliability

What was made to go wrong with running servers, and with training and export, and what came of it. Every item was
recorded with its answer, and every answer held against that of the engine run alone, one text at a time: at most 1e-5
apart in any number. A row of a server counts only where enough traffic flowed before and after the fault. A **control**
is the same without what is to protect: it must fail, or the check could not have seen a failure. That of the full disk
is the other way round: with room, nothing may fail."""


def page(report: Mapping[str, Any]) -> str:
    """The page for a report."""
    faults = report["faults"]
    good = sum(one["passed"] and one["control_failed"] for one in faults.values())
    blocks = [
        _HEAD,
        _summary(report, good),
        "\n".join(
            [
                "| fault | expected | seen | control | |",
                "| --- | --- | --- | --- | --- |",
                *(_row(one) for one in faults.values()),
            ]
        ),
        _FIGURES,
        "\n".join(["| fault | figures |", "| --- | --- |", *(_figures(name, one) for name, one in faults.items())]),
        _ELSEWHERE,
    ]
    return "\n\n".join(blocks) + "\n"


_FIGURES = "## Figures"

_ELSEWHERE = """## Tested elsewhere

Damaged checkpoints, and training that ends abruptly at chosen steps: `tests/training/runs/test_resume.py`. A kill between
the two renames by which a directory is replaced: `tests/bundle/test_atomic_directory.py`. Damaged, forged and half-written
bundles: `tests/bundle/test_corrupt_bundles.py`; manifests that Hypothesis makes: `tests/bundle/test_codec.py`.
Certificates and keys that are wrong, expired, missing or replaced under load: `tests/e2e/test_security.py`, with a
table in [security.md](security.md). Rubbish in messages, field by field: `tests/server/rpc/test_request_decoder.py`."""


def _summary(report: Mapping[str, Any], good: int) -> str:
    faults = report["faults"]
    others = [one["load_average"] for one in faults.values() if "load_average" in one]
    machine = f"on {report['cores']} cores, over loopback"
    return (
        f"`make reliability` on {report['date']}, {machine}: {good} of {len(faults)} as expected. Other work shared "
        f"the machine, with a load average of {min(others):g} to {max(others):g} as the programs began: counts do not "
        "depend on that, times and memory do."
    )


def _row(one: Mapping[str, Any]) -> str:
    mark = "as expected" if one["passed"] and one["control_failed"] else "**no**"
    cells = [one["fault"], one["expected"], one["seen"], one["control"], mark]
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _figures(name: str, one: Mapping[str, Any]) -> str:
    return f"| {name} | {', '.join(f'{key} {value:,}' for key, value in one['figures'].items())} |"

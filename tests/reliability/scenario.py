"""Scenarios: a fault, the expected behavior, and a function that injects the fault and returns a verdict."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .reference_answers import ReferenceAnswers


@dataclass(frozen=True)
class Context:
    """Inputs of a scenario.

    Attributes:
        bundle: The bundle to serve.
        other_bundle: A bundle with the same backbone and a different head: different answers in the same embedding
            space.
        reference_answers: The correct answers of both bundles.
        texts: Ordinary texts whose reference answers are already computed.
        work_dir: An empty directory for the scenario alone.
        quick: Whether to run the smallest amount of work that still shows a failure.
        soak_s: Duration of the soak in seconds.
    """

    bundle: Path
    other_bundle: Path
    reference_answers: ReferenceAnswers
    texts: list[str]
    work_dir: Path
    quick: bool
    soak_s: float

    def scaled(self, full: int, quick: int) -> int:
        """Returns ``full`` for a full run and ``quick`` for a quick run."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Verdict:
    """Result of a scenario.

    Attributes:
        observed: One sentence without a full stop that states the decisive numbers.
        passed: Whether the observation matches the expectation, and enough traffic flowed before and after the fault.
        control: What the control did and what was observed; empty if the figures need no control.
        control_failed: Whether the control failed, as it must.
        figures: Numbers by name, with units in the names.
    """

    observed: str
    passed: bool
    control: str = ""
    control_failed: bool = True
    figures: Mapping[str, float] = field(default_factory=dict)


ScenarioFunction = Callable[[Context], Awaitable[Verdict]]


@dataclass(frozen=True)
class Scenario:
    """A registered scenario.

    Attributes:
        name: Name on the command line and in the results.
        fault: The injected fault, as shown on the page.
        expected: The expected behavior, as shown on the page.
        run: Injects the fault and returns the verdict.
        timed: Whether the verdict depends on timing, so that other work on the machine can change it.
    """

    name: str
    fault: str
    expected: str
    run: ScenarioFunction
    timed: bool = False


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str, *, fault: str, expected: str, timed: bool = False
) -> Callable[[ScenarioFunction], ScenarioFunction]:
    """Registers a function as a scenario; scenarios run in the order of their registration."""

    def register(run: ScenarioFunction) -> ScenarioFunction:
        SCENARIOS[name] = Scenario(name, fault, expected, run, timed)
        return run

    return register

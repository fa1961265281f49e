"""What a fault program is, and what it says when it has run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .reference_answers import ReferenceAnswers


@dataclass(frozen=True)
class Context:
    """Where a fault program works.

    Attributes:
        bundle: What is served.
        other: The same backbone with another head: other answers, in the same embedding space.
        offline: The right answers of both.
        texts: Ordinary texts, whose right answers are known already.
        folder: Of its own, empty.
        quick: Whether to do as little as still shows something.
        soak_s: Seconds of the soak.
    """

    bundle: Path
    other: Path
    reference_answers: ReferenceAnswers
    texts: list[str]
    folder: Path
    quick: bool
    soak_s: float

    def scaled(self, full: int, quick: int) -> int:
        """The number for a full run, or that for a quick one."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Verdict:
    """What came of a fault.

    Attributes:
        seen: One sentence without its full stop, with the numbers that decide.
        passed: Whether it is what was expected, and enough traffic flowed before and after the fault.
        control: What was done that must fail, and what came of it; empty where the figures need none.
        control_failed: Whether it failed.
        figures: Numbers by name, units in the names.
    """

    seen: str
    passed: bool
    control: str = ""
    control_failed: bool = True
    figures: Mapping[str, float] = field(default_factory=dict)


Program = Callable[[Context], Awaitable[Verdict]]


@dataclass(frozen=True)
class Scenario:
    """A fault program with its name on the command line, and what stands in the table.

    Attributes:
        timed: Whether its verdict hangs on a clock, so that other work on the machine may turn it.
    """

    name: str
    fault: str
    expected: str
    program: Program
    timed: bool = False


SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str, *, fault: str, expected: str, timed: bool = False) -> Callable[[Program], Program]:
    """Makes a function a fault program; they run in the order in which they are written."""

    def register(program: Program) -> Program:
        SCENARIOS[name] = Scenario(name, fault, expected, program, timed)
        return program

    return register

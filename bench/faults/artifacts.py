"""Runs and bundles that are being written when the writer is killed or the disk is full.

They are made of the demo corpus on a small random backbone, so that each takes seconds; the programs are the real ones.
"""

from __future__ import annotations

import asyncio
import random

from resume import measure, tiny
from serving import DEMO

from .case import Finding, Place, case

_CONFIG = DEMO.with_name("config.toml")
# The part of a short run in which Python starts: a kill there shows nothing.
_STARTED = 0.7


@case(
    "killed training",
    fault="training killed with SIGKILL at random moments, a checkpoint every second step, and resumed",
    expected="the weights of a run left alone, bit for bit; nothing is left beside the run directory",
)
async def killed_training(place: Place) -> Finding:
    """By bench/resume.py; the control, a run with another seed, must have other weights."""
    flags = tiny(place.folder / "backbone")
    command = [str(_CONFIG), *flags, "--max-steps", str(place.many(100, 60)), "--set", "training.checkpoint_steps=2"]
    kills = place.many(4, 1)
    found = await asyncio.to_thread(measure, command, kills, random.Random(0), place.folder, _STARTED)
    left = sorted({path.name for path in place.folder.iterdir()} - {"backbone", "whole", "other"})
    when = " and ".join(f"{number} {state}" for state, number in found["killed"].items())
    return Finding(
        seen=f"{kills} kills, {when}: the weights are equal after {found['bit_equal']}; "
        f"{len(left)} files or folders are left{': ' if left else ''}{', '.join(left)}",
        passed=found["bit_equal"] == kills and not left,
        control=f"the weights of a run with another seed are {'other' if found['control_differs'] else 'the same'}",
        control_failed=found["control_differs"],
        figures={"kills": kills, "equal": found["bit_equal"], "run_s": found["seconds_of_a_run"]},
    )

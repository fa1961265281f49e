"""Runs and bundles that are being written when the writer is killed.

They are made of the demo corpus on a small random backbone, so that each takes seconds; the programs are the real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import polyhead_bundle as bundle

from bench.harness.servers import BIN
from bench.harness.texts import DEMO_TEXTS
from bench.training.resume import measure, tiny, train

from .processes import run_server_with_client
from .reference_answers import ReferenceAnswers
from .scenario import Context, Verdict, scenario

CONFIG = DEMO_TEXTS.with_name("config.toml")
# The part of a short run in which Python starts: a kill there shows nothing.
_STARTED = 0.7
STEPS = "12"
# An export takes longer.
_EXPORT_S = 9.0
# From when a bundle is being written until it has its name, with its bytes on the disk.
_WRITING_S = 0.1


@scenario(
    "killed training",
    fault="training killed with SIGKILL at random moments, a checkpoint every second step, and resumed",
    expected="the weights of a run left alone, bit for bit; nothing is left beside the run directory",
)
async def killed_training(context: Context) -> Verdict:
    """By bench/training/resume.py; the control, a run with another seed, must have other weights."""
    flags = tiny(context.work_dir / "backbone")
    command = [str(CONFIG), *flags, "--max-steps", str(context.scaled(100, 40)), "--set", "training.checkpoint_steps=2"]
    kills = context.scaled(4, 1)
    found = await asyncio.to_thread(measure, command, kills, random.Random(0), context.work_dir, _STARTED)
    left = sorted({path.name for path in context.work_dir.iterdir()} - {"backbone", "whole", "other"})
    when = " and ".join(f"{number} {state}" for state, number in found["killed"].items())
    return Verdict(
        observed=f"{kills} kills, {when}: the weights are equal after {found['bit_equal']}; "
        f"{len(left)} files or folders are left{': ' if left else ''}{', '.join(left)}",
        passed=found["bit_equal"] == kills and not left,
        control=f"the weights of a run with another seed are {'other' if found['control_differs'] else 'the same'}",
        control_failed=found["control_differs"],
        figures={"kills": kills, "equal": found["bit_equal"], "run_s": found["run_seconds"]},
    )


@scenario(
    "killed export",
    fault="the export killed with SIGKILL at any moment and while it writes, with an older bundle there and without",
    expected="no bundle or a whole one, the older one serves; a later export succeeds, and nothing is left beside it",
)
async def killed_export(context: Context) -> Verdict:
    """The control: a bundle copied file by file, which a kill cuts short."""
    run, target = context.work_dir / "run", context.work_dir / "bundles/bundle"
    await asyncio.to_thread(train, [str(CONFIG), *tiny(context.work_dir / "backbone"), "--max-steps", STEPS], run)
    kills, rng, broken, states = context.scaled(6, 2), random.Random(0), 0, [0, 0]
    for number in range(kills):
        if number == kills // 2:
            # A kill may have come too late.
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(context.bundle, target)
        # Every second one while it writes.
        states[number % 2] += await asyncio.to_thread(_killed_export, run, target, rng, number % 2 == 1)
        broken += (target.exists() or number >= kills // 2) and not is_whole(target)
    wrong = await _wrong(context, target)
    hidden = len(list(target.parent.iterdir())) - 1
    await asyncio.to_thread(_export, run, target)
    left = [path.name for path in target.parent.iterdir() if path != target]
    replaced = bundle.load(target).digest != bundle.load(context.bundle).digest
    wrong += await _wrong(context, target)
    pieces, refused = await asyncio.to_thread(_cut_short, target, context.work_dir / "copy")
    return Verdict(
        observed=f"{sum(states)} of {kills} were killed, {states[1]} of them while they wrote: {broken} bundles broken, "
        f"{hidden} hidden folders; then the export {'succeeded' if replaced else 'changed nothing'} and left "
        f"{len(left)} beside it; {wrong} of the older and the new bundle's answers wrong",
        passed=not broken and not wrong and not left and replaced and all(states),
        control=f"of {pieces} bundles that were copied file by file and cut short the loader refused {refused}",
        control_failed=refused == pieces,
        figures={"kills": kills, "broken": broken, "hidden_folders": hidden, "left": len(left), "incorrect": wrong},
    )


def _killed_export(run: Path, target: Path, rng: random.Random, writing: bool) -> bool:
    """Kills an export, while it writes the bundle or at any moment before; whether it had not ended."""
    target.parent.mkdir(exist_ok=True)
    before = set(target.parent.iterdir())
    process = subprocess.Popen(
        [str(BIN / "polyhead-export"), str(run), str(target)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(run.parent)},
    )
    end = time.monotonic() + rng.uniform(0, _EXPORT_S)
    if writing:
        while process.poll() is None and set(target.parent.iterdir()) <= before:
            time.sleep(0.001)
        end = time.monotonic() + rng.uniform(0, _WRITING_S)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, end - time.monotonic()))
    process.kill()
    return process.wait() < 0


def _export(run: Path, target: Path) -> None:
    subprocess.run(
        [str(BIN / "polyhead-export"), str(run), str(target)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def is_whole(path: Path) -> bool:
    """Whether the loader takes a bundle."""
    try:
        bundle.load(path)
    except bundle.BundleError:
        return False
    return True


async def _wrong(context: Context, path: Path) -> int:
    """How many texts a server of a bundle does not answer as its engine alone does."""
    reference_answers, texts = ReferenceAnswers([path]), context.texts[:20]
    async with run_server_with_client(path, context.work_dir) as (_, client):
        answers = await client.analyze(texts, deadline_s=60)
    pairs = zip(texts, answers, strict=True)
    return sum(one.result is None or reference_answers.judge(text, one.result) != "correct" for text, one in pairs)


def _cut_short(source: Path, copy: Path) -> tuple[int, int]:
    """Copies a bundle file by file; in how many states it was before it was whole, and in how many it was refused."""
    refused, files = 0, sorted(path for path in source.rglob("*") if path.is_file())
    for file in files:
        target = copy / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        refused += not is_whole(copy)
        shutil.copyfile(file, target)
    return len(files), refused if is_whole(copy) else 0

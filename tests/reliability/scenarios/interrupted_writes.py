"""Training runs and bundles whose writer is killed.

The real programs run on the demo corpus with a small random backbone, so that each run takes seconds.
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
from tests.reliability.processes import run_server_with_client
from tests.reliability.reference_answers import ReferenceAnswers
from tests.reliability.scenario import Context, Verdict, scenario

CONFIG = DEMO_TEXTS.with_name("config.toml")
# Share of a short run during which Python starts; a kill before then tests nothing.
_STARTUP_SHARE = 0.7
# Training steps of the run to export.
STEPS = "12"
# Shorter than an export takes, so that a kill within this time interrupts it.
_EXPORT_S = 9.0
# Time from the start of writing a bundle until it is synced to disk and renamed.
_WRITING_S = 0.1


@scenario(
    "killed training",
    fault="Training with a checkpoint every second step is killed with SIGKILL at random moments, then resumed",
    expected="The weights are bit-identical to those of an uninterrupted run; no other files remain",
)
async def killed_training(context: Context) -> Verdict:
    """Uses the resume benchmark. The control is a run with another seed, whose weights must differ."""
    flags = tiny(context.work_dir / "backbone")
    command = [str(CONFIG), *flags, "--max-steps", str(context.scaled(100, 40)), "--set", "training.checkpoint_steps=2"]
    kills = context.scaled(4, 1)
    result = await asyncio.to_thread(measure, command, kills, random.Random(0), context.work_dir, _STARTUP_SHARE)
    left = sorted({path.name for path in context.work_dir.iterdir()} - {"backbone", "whole", "other"})
    when = " and ".join(f"{number} {state}" for state, number in result["killed"].items())
    return Verdict(
        observed=f"{kills} kills, {when}: the weights are identical after {result['bit_equal']}; "
        f"{len(left)} other files or directories remain{': ' if left else ''}{', '.join(left)}",
        passed=result["bit_equal"] == kills and not left,
        control=f"the weights of a run with another seed {'differ' if result['control_differs'] else 'are identical'}",
        control_failed=result["control_differs"],
        figures={"kills": kills, "identical": result["bit_equal"], "run_s": result["run_seconds"]},
    )


@scenario(
    "killed export",
    fault="The export is killed with SIGKILL at random moments and while it writes, with and without an older bundle "
    "in its place",
    expected="The bundle is either absent or complete, and an older bundle remains usable; a later export succeeds and "
    "leaves no other files",
)
async def killed_export(context: Context) -> Verdict:
    """The control copies a bundle file by file and stops halfway, which must produce a corrupt bundle."""
    run, target = context.work_dir / "run", context.work_dir / "bundles/bundle"
    await asyncio.to_thread(train, [str(CONFIG), *tiny(context.work_dir / "backbone"), "--max-steps", STEPS], run)
    kills, rng, corrupt, killed = context.scaled(6, 2), random.Random(0), 0, [0, 0]
    for number in range(kills):
        if number == kills // 2:
            # A kill may have come too late and left a complete bundle.
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(context.bundle, target)
        # Every second export is killed while it writes.
        killed[number % 2] += await asyncio.to_thread(_kill_export, run, target, rng, number % 2 == 1)
        corrupt += (target.exists() or number >= kills // 2) and not is_valid(target)
    incorrect = await _incorrect(context, target)
    temporary = len(list(target.parent.iterdir())) - 1
    await asyncio.to_thread(_export, run, target)
    left = [path.name for path in target.parent.iterdir() if path != target]
    replaced = bundle.load(target).digest != bundle.load(context.bundle).digest
    incorrect += await _incorrect(context, target)
    copies, refused = await asyncio.to_thread(_copy_partially, target, context.work_dir / "copy")
    return Verdict(
        observed=f"{sum(killed)} of {kills} exports were killed, {killed[1]} of them while writing; corrupt bundles: "
        f"{corrupt}, temporary directories: {temporary}; a later export "
        f"{'succeeded' if replaced else 'changed nothing'} and left {len(left)} other files; {incorrect} incorrect "
        "answers of the older and the new bundle",
        passed=not corrupt and not incorrect and not left and replaced and all(killed),
        control=f"the loader refuses {refused} of {copies} partial copies of a bundle",
        control_failed=refused == copies,
        figures={
            "kills": kills,
            "corrupt": corrupt,
            "temporary_directories": temporary,
            "left": len(left),
            "incorrect": incorrect,
        },
    )


def _kill_export(run: Path, target: Path, rng: random.Random, writing: bool) -> bool:
    """Kills an export at a random moment, or while it writes the bundle; returns whether it was still running."""
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


def is_valid(path: Path) -> bool:
    """Whether the loader accepts a bundle."""
    try:
        bundle.load(path)
    except bundle.BundleError:
        return False
    return True


async def _incorrect(context: Context, path: Path) -> int:
    """Number of texts for which a server of a bundle does not return the reference answer."""
    reference_answers, texts = ReferenceAnswers([path]), context.texts[:20]
    async with run_server_with_client(path, context.work_dir) as (_, client):
        answers = await client.analyze(texts, deadline_s=60)
    pairs = zip(texts, answers, strict=True)
    return sum(one.result is None or reference_answers.judge(text, one.result) != "correct" for text, one in pairs)


def _copy_partially(source: Path, copy: Path) -> tuple[int, int]:
    """Copies a bundle file by file; returns the number of partial copies, and how many of them were refused."""
    refused, files = 0, sorted(path for path in source.rglob("*") if path.is_file())
    for file in files:
        target = copy / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        refused += not is_valid(copy)
        shutil.copyfile(file, target)
    return len(files), refused if is_valid(copy) else 0

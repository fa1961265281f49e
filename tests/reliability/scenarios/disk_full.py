"""A disk that becomes full while training runs and bundles are written to it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.harness.servers import BIN
from bench.training.resume import tiny
from tests.reliability.scenario import Context, Verdict, scenario

from .interrupted_writes import CONFIG, STEPS, is_valid

_DISK_BYTES = 100_000_000
# Free bytes during training: enough for nothing, and for the first checkpoint only.
_TRAINING_SPACE = (0, 5_500_000)
# Free bytes during export, and whether the temporary directory is on the disk, too. In the first case the graphs do
# not fit, in the second the bundle does not.
_EXPORT_SPACE = ((3_000_000, True), (4_000_000, False))
_BALLAST = "ballast"
_REMEDY = re.compile(r"\b(free|make)\b.*\b(space|room)\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Disk:
    """A small file system in its own mount namespace.

    Attributes:
        mount_point: Its path inside the namespace.
        outside: Its path outside the namespace.
        enter: Command that runs a program in the namespace.
    """

    mount_point: Path
    outside: Path
    enter: tuple[str, ...]

    def run(
        self, program: str, *arguments: str, free_bytes: int = _DISK_BYTES, temporary: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program with at most ``free_bytes`` bytes free; ``temporary`` puts its TMPDIR on the disk."""
        self._fill(free_bytes)
        environment = {**os.environ, "TMPDIR": str(self.mount_point / "tmp")} if temporary else None
        command = [*self.enter, str(BIN / program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    def content(self) -> dict[str, str]:
        """Returns the hash of each file of the run and the bundle by path."""
        files = (path for name in ("run", "bundle") for path in (self.outside / name).rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def _fill(self, free_bytes: int) -> None:
        ballast = self.outside / _BALLAST
        ballast.unlink(missing_ok=True)
        available = os.statvfs(self.outside).f_bavail * os.statvfs(self.outside).f_frsize
        if free_bytes < available:
            ballast.write_bytes(bytes(available - free_bytes))


@contextlib.contextmanager
def _mounted_disk(directory: Path) -> Iterator[_Disk]:
    """Mounts a file system that only this process uses; it is unmounted when the block ends."""
    mount_point = directory / "disk"
    mount_point.mkdir()
    script = f"mount -t tmpfs -o size={_DISK_BYTES} none {mount_point} && echo mounted && exec cat"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            if holder.stdout is None or holder.stdout.readline() != "mounted\n":
                raise SystemExit("cannot mount a file system: this scenario requires Linux with user namespaces")
            outside = Path(f"/proc/{holder.pid}/root{mount_point}")
            (outside / "tmp").mkdir()
            enter = ("nsenter", f"--target={holder.pid}", "--user", "--mount", "--preserve-credentials", "--")
            yield _Disk(mount_point, outside, enter)
        finally:
            holder.kill()


def _explains(result: subprocess.CompletedProcess[str], disk: Path) -> bool:
    """Whether a program failed with exit code 1 and one line that names the full disk and what to do."""
    lines = result.stderr.splitlines()
    messages = [line for line in lines if line.startswith("polyhead-")]
    is_last_line = len(messages) == 1 and messages == lines[-1:]
    is_clear = is_last_line and str(disk) in messages[0] and _REMEDY.search(messages[0]) is not None
    return result.returncode == 1 and is_clear and "Traceback" not in result.stderr


@scenario(
    "full disk",
    fault="Training and export fill a small file system that holds the output or the temporary directory",
    expected="The exit code is 1, and one line names the place and the remedy; existing files stay intact; with free "
    "space the programs succeed",
)
async def full_disk(context: Context) -> Verdict:
    """The control runs the same commands with enough free space, which must succeed."""
    flags = ["--set", "training.checkpoint_steps=2", *tiny(context.work_dir / "backbone")]
    with _mounted_disk(context.work_dir) as disk:
        return await asyncio.to_thread(_fill_disk, context, disk, flags)


def _fill_disk(context: Context, disk: _Disk, flags: list[str]) -> Verdict:
    run, target = disk.mount_point / "run", disk.mount_point / "bundle"
    training = ["polyhead-train", str(CONFIG), *flags, "--output-dir", str(run), "--max-steps"]
    export = ["polyhead-export", str(run), str(target)]
    # The existing run and bundle, written with enough free space.
    failed = [disk.run(*training, STEPS).returncode != 0, disk.run(*export).returncode != 0]
    before = disk.content()
    training_space, export_space = _TRAINING_SPACE[context.scaled(0, 1) :], _EXPORT_SPACE[context.scaled(0, 1) :]
    results = [disk.run(*training, "14", "--restart", free_bytes=free) for free in training_space]
    intact = [disk.content() == before]
    results += [disk.run(*export, free_bytes=free, temporary=temporary) for free, temporary in export_space]
    intact.append(disk.content() == before)
    explained = [_explains(one, disk.mount_point) for one in results]
    exit_codes = [disk.run(*training, "14", "--resume").returncode, disk.run(*export).returncode]
    left = sorted({path.name for path in disk.outside.iterdir()} - {"run", "bundle", "tmp"})
    recovered = not any(exit_codes) and disk.content() != before and is_valid(disk.outside / "bundle") and not left
    return Verdict(
        observed=f"{sum(explained)} of {len(explained)} programs exited with 1 and named the place and the remedy; the "
        f"existing run and bundle stayed {'intact' if all(intact) else 'not intact'}; with free space, both programs "
        f"{'succeeded' if recovered else 'failed'} and left {len(left)} other files",
        passed=all(explained) and all(intact) and recovered,
        control=f"with enough free space from the start, {sum(failed)} of {len(failed)} programs fail",
        control_failed=not any(failed),
        figures={"failures": len(explained), "explained": sum(explained), "left": len(left)},
    )

"""A disk that is full while runs and bundles are written to it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.harness.servers import BIN
from bench.training.resume import tiny

from .interrupted_writes import CONFIG, STEPS, is_whole
from .scenario import Context, Verdict, scenario

_DISK_BYTES = 100_000_000
# Nothing at all, and a first checkpoint but no second.
_TRAINING_ROOMS = (0, 5_500_000)
# Bytes, and whether the temporary directory is on the disk as well: the graphs do not fit, the bundle does not.
_EXPORT_ROOMS = ((3_000_000, True), (4_000_000, False))
_BALLAST = "ballast"


@dataclass(frozen=True)
class _Disk:
    """A small file system of its own.

    Attributes:
        folder: Where programs that are run in its namespace see it.
        seen: Where everybody else does.
        enter: What starts a program in its namespace.
    """

    folder: Path
    seen: Path
    enter: tuple[str, ...]

    def run(
        self, program: str, *arguments: str, room: int = _DISK_BYTES, temporary: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end, with so many bytes free."""
        self._leave(room)
        environment = {**os.environ, "TMPDIR": str(self.folder / "tmp")} if temporary else None
        command = [*self.enter, str(BIN / program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    def content(self) -> dict[str, str]:
        """The hash of each file of the run and the bundle, by its path."""
        files = (path for name in ("run", "bundle") for path in (self.seen / name).rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def _leave(self, room: int) -> None:
        ballast = self.seen / _BALLAST
        ballast.unlink(missing_ok=True)
        free = os.statvfs(self.seen).f_bavail * os.statvfs(self.seen).f_frsize
        if room < free:
            ballast.write_bytes(bytes(free - room))


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[_Disk]:
    """A file system that this process alone may fill; it vanishes with the block."""
    mounted = folder / "disk"
    mounted.mkdir()
    script = f"mount -t tmpfs -o size={_DISK_BYTES} none {mounted} && echo mounted && exec cat"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            if holder.stdout is None or holder.stdout.readline() != "mounted\n":
                raise SystemExit("no file system could be mounted: this needs Linux with user namespaces")
            seen = Path(f"/proc/{holder.pid}/root{mounted}")
            (seen / "tmp").mkdir()
            enter = ("nsenter", f"--target={holder.pid}", "--user", "--mount", "--preserve-credentials", "--")
            yield _Disk(mounted, seen, enter)
        finally:
            holder.kill()


def _says_why(result: subprocess.CompletedProcess[str], disk: Path) -> bool:
    """Whether a program failed with one line that says where there is no room, and what to do."""
    lines = result.stderr.splitlines()
    said = [line for line in lines if line.startswith("polyhead-")]
    named = len(said) == 1 and said == lines[-1:] and str(disk) in said[0] and "ake room" in said[0]
    return result.returncode == 1 and named and "Traceback" not in result.stderr


@scenario(
    "full disk",
    fault="training and export on a small file system that gets full, in its output or its temporary directory",
    expected="exit code 1 and one line with the place and the mend; what stood there is whole; with room it goes on",
)
async def full_disk(context: Context) -> Verdict:
    """The control: with room, the same commands do not fail."""
    flags = ["--set", "training.checkpoint_steps=2", *tiny(context.work_dir / "backbone")]
    with _disk(context.work_dir) as disk:
        return await asyncio.to_thread(_fill_disk, context, disk, flags)


def _fill_disk(context: Context, disk: _Disk, flags: list[str]) -> Verdict:
    run, target = disk.folder / "run", disk.folder / "bundle"
    training = ["polyhead-train", str(CONFIG), *flags, "--output-dir", str(run), "--max-steps"]
    export = ["polyhead-export", str(run), str(target)]
    # What is there before, made with room.
    failed = [disk.run(*training, STEPS).returncode != 0, disk.run(*export).returncode != 0]
    before = disk.content()
    rooms, export_rooms = _TRAINING_ROOMS[context.scaled(0, 1) :], _EXPORT_ROOMS[context.scaled(0, 1) :]
    ended = [disk.run(*training, "14", "--restart", room=room) for room in rooms]
    whole = [disk.content() == before]
    ended += [disk.run(*export, room=room, temporary=temporary) for room, temporary in export_rooms]
    whole.append(disk.content() == before)
    told = [_says_why(one, disk.folder) for one in ended]
    later = [disk.run(*training, "14", "--resume").returncode, disk.run(*export).returncode]
    left = sorted({path.name for path in disk.seen.iterdir()} - {"run", "bundle", "tmp"})
    good = not any(later) and disk.content() != before and is_whole(disk.seen / "bundle") and not left
    return Verdict(
        observed=f"{sum(told)} of {len(told)} programs ended with 1 and said where and what to do; the run and the bundle "
        f"there were {'whole' if all(whole) else 'damaged'}; with room, both programs "
        f"{'succeeded' if good else 'failed'} and left {len(left)} beside them",
        passed=all(told) and all(whole) and good,
        control=f"with room from the start {sum(failed)} of {len(failed)} failed",
        control_failed=not any(failed),
        figures={"failures": len(told), "said": sum(told), "left": len(left)},
    )

"""Fuzzes one target or all of them, guided by the coverage of the project's code. Requires ``polyhead[fuzz]``.

    python -m tests.fuzz.run http --seconds 300
    python -m tests.fuzz.run all --seconds 60

Each target starts from its seeds, from ``tests/fuzz/regressions/TARGET`` and from what earlier runs found in
``build/fuzz/TARGET/corpus``. An input with a fault is written to ``build/fuzz/TARGET`` and ends the run of the target;
mend the fault and move the file to the regressions, which ``make test`` runs. Exit codes: 0 no fault was found; 1
otherwise.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from .json_mutation import mutated
from .targets import TARGETS

REGRESSIONS = Path(__file__).parent / "regressions"
BUILD = Path(__file__).parents[2] / "build/fuzz"
PACKAGES = ["polyhead_bulk", "polyhead_bundle", "polyhead_rows", "polyhead_server"]
# A slower input is a fault: the tests' machines need milliseconds.
_MAX_SECONDS_PER_INPUT = 20
_MAX_MEMORY_MB = 4096
_MAX_INPUT_BYTES = 64 * 2**10
# Every so many changes of a JSON document are changes of its bytes.
_BYTES_EVERY = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=int, default=60, help="duration of each target (default: 60)")
    options = parser.parse_args(arguments)
    if options.target != "all":
        fuzz(options.target, options.seconds)
        return 0
    # Each in a process of its own: libFuzzer ends its process.
    command = [sys.executable, "-m", "tests.fuzz.run"]
    codes = {name: subprocess.call([*command, name, "--seconds", str(options.seconds)]) for name in TARGETS}
    for name, code in codes.items():
        print(f"{name}: {'no fault' if code == 0 else f'a fault; see {BUILD / name}'}")
    return int(any(codes.values()))


def fuzz(name: str, seconds: int) -> None:
    """Fuzzes a target; ends the process."""
    import atheris

    # Every invalid input would be logged.
    logging.disable()
    folder = BUILD / name
    # Nothing unwinds it: libFuzzer ends the process.
    stack = ExitStack()
    for path in (folder / "corpus", folder / "seeds"):
        path.mkdir(parents=True, exist_ok=True)
    # The seeds import modules, too, which must be instrumented when they are.
    with atheris.instrument_imports(include=PACKAGES):
        check = TARGETS[name].create(stack)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (folder / "seeds" / str(number)).write_bytes(seed)
    known = [folder / "corpus", folder / "seeds", *REGRESSIONS.glob(name)]
    flags = [
        f"-max_total_time={seconds}",
        f"-timeout={_MAX_SECONDS_PER_INPUT}",
        f"-rss_limit_mb={_MAX_MEMORY_MB}",
        f"-max_len={_MAX_INPUT_BYTES}",
        f"-artifact_prefix={folder}/",
        "-len_control=0",
        "-print_final_stats=1",
    ]
    at = TARGETS[name].json_at

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        document = None if at is None or seed % _BYTES_EVERY == 0 else mutated(data, seed, at)
        found: bytes = atheris.Mutate(data, len(data)) if document is None else document
        return found[:max_size]

    atheris.Setup([sys.argv[0], *map(str, known), *flags], check, custom_mutator=None if at is None else mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())

"""Command-line conventions of the benchmark programs. Requires the standard library alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def program() -> str:
    """Returns the command that starts this program, such as ``python -m bench.server.startup``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else f"python {sys.argv[0]}"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser whose help shows a module's docstring as it is written."""
    return argparse.ArgumentParser(
        prog=program(), description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_output_flag(parser: argparse.ArgumentParser, default: Path | None = None) -> None:
    """Adds ``--output`` to the flags of a benchmark program."""
    shown = f"default: {default}" if default else "default: print only"
    parser.add_argument("--output", type=Path, default=default, help=f"JSON file to write ({shown})")

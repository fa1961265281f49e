"""Writes the sample answer of README.md: the output of the command above it, wrapped, from the demo model.

python -m docs.sample_answer --bundle build/demo/bundle
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import textwrap
from pathlib import Path

from bench.harness.servers import BIN, serving

README = Path(__file__).parents[1] / "README.md"
_WIDTH = 118
# The console block with the command, and the JSON block that follows it.
_SAMPLE = re.compile(
    r"^\$ (?P<command>polyhead analyze --dimensions [^\n]*)$.*?^```json\n(?P<answer>.*?)^```$", re.MULTILINE | re.DOTALL
)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle of the demo model")
    arguments = parser.parse_args()
    text = README.read_text("utf-8")
    with serving(arguments.bundle) as target:
        answer = ask(sample(text)[0], target)
    README.write_text(replaced(text, wrap(answer)), "utf-8")


def sample(text: str) -> tuple[str, str]:
    """Returns the command and the wrapped answer of a page."""
    found = _SAMPLE.search(text)
    if not found:
        raise ValueError("no command `polyhead analyze --dimensions` with a JSON block after it")
    return found["command"], found["answer"]


def replaced(text: str, answer: str) -> str:
    """Returns a page with another sample answer."""
    _, shown = sample(text)
    return text.replace(shown, answer, 1)


def ask(command: str, target: str) -> str:
    """Runs the command against a server; returns the answer, one line of JSON."""
    arguments = [str(BIN / "polyhead"), *shlex.split(command)[1:], "--target", target]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


def wrap(answer: str) -> str:
    """Wraps a JSON object between its values, with a line for each field that is an object."""
    lines: list[str] = []
    for name, value in json.loads(answer).items():
        field = f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
        if lines and not isinstance(value, dict):
            lines[-1] += f", {field}"
        else:
            lines.append(field)
    # A key stays on the line of its value, and an object without others in it on one line.
    joined = [re.sub(r"\{[^{}]*\}", lambda flat: flat[0].replace(" ", "\0"), line) for line in lines]
    joined = [line.replace(": ", ":\0") for line in joined]
    wrapped = [
        textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in joined
    ]
    return ("{" + ",\n ".join(wrapped) + "}\n").replace("\0", " ")


if __name__ == "__main__":
    main()

"""``mypy --strict`` on code that uses the client. Not in other environments than that of development: it needs mypy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.demo import ROOT

CALLS = """
from polyhead_client import Answer, AsyncClient, Client

def sync(client: Client, texts: list[str]) -> None:
    reveal_type(client.stream(texts, tasks=["embedding"], order="completion", dimensions=64, max_in_flight=8))
    reveal_type(client.analyze(texts, truncation="window", deadline_s=None, expected_fingerprints=client.info()))
    client.stream_embed([("id", "text")], encoding="float16", include_timings=True)
    reveal_type(client.embed([("id", "text")], encoding="float16", include_timings=True))
    reveal_type(client.embeddings(texts, dimensions=8).shape)

async def aio(client: AsyncClient, texts: list[str]) -> None:
    async for answer in client.stream_classify(texts, order="request"):
        reveal_type(answer)
    reveal_type(await client.analyze(texts, tasks=["sentiment"]))
"""
MISTAKES = """
from polyhead_client import AsyncClient, Client

def mistakes(client: Client, aio: AsyncClient) -> None:
    client.stream(["text"], order="random")
    client.classify(["text"], encoding="int8")
    client.analyze(["text"], max_in_flight=8)
    client.embed(["text"], dimensions="64")
    client.info(deadline=3)
    aio.stream(["text"], task=["embedding"])
"""


def check_types(code: str, folder: Path) -> list[str]:
    """Runs ``mypy --strict`` on user code and returns its messages without their positions."""
    (folder / "user.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, "--no-error-summary", str(folder / "user.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.stderr == ""
    return [line.split(": ", 1)[1] for line in done.stdout.splitlines()]


def test_mypy_infers_the_types_of_correct_calls(tmp_path: Path) -> None:
    revealed = [message.removeprefix("note: Revealed type is ").strip('"') for message in check_types(CALLS, tmp_path)]
    answer = "polyhead_client.types.Answer"
    assert [kind.replace("builtins.", "") for kind in revealed] == [
        f"typing.Iterator[{answer}]",
        f"list[{answer}]",
        f"list[{answer}]",
        "tuple[Any, ...]",
        answer,
        f"list[{answer}]",
    ]


def test_mypy_rejects_every_wrong_option(tmp_path: Path) -> None:
    errors = check_types(MISTAKES, tmp_path)
    assert [message.split(":")[0] for message in errors if "error" in message] == ["error"] * 6, errors


def python_blocks(page: Path) -> list[str]:
    return [block.split("```")[0] for block in page.read_text().split("```python\n")[1:]]


@pytest.mark.parametrize("page", ["README.md", "docs/guides/quickstart.md"])
def test_python_of_the_page_passes_strict_type_checks(page: str, tmp_path: Path) -> None:
    blocks = python_blocks(ROOT / page)
    assert blocks
    code = tmp_path / "page.py"
    code.write_text("\n".join(blocks))
    command: list[Any] = [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    # The control has another size: mypy does not read a file again that has the size and second of the last one.
    code.write_text("\n".join(blocks).replace(".sentiment.label", ".sentiment.labels"))
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=280).returncode == 1

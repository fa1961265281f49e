"""``mypy --strict`` on code that uses the client. Not in other environments than that of development: it needs mypy."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

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
PAGES = {"readme": "README.md", "quickstart": "docs/guides/quickstart.md"}


def python_of(page: str) -> str:
    """Returns the blocks of Python of a page."""
    blocks = [block.split("```")[0] for block in (ROOT / page).read_text().split("```python\n")[1:]]
    assert blocks
    return "\n".join(blocks)


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What ``mypy --strict`` says of each piece of code, without the positions; one run for all."""
    codes = {"calls": CALLS, "mistakes": MISTAKES}
    for name, page in PAGES.items():
        codes[name] = python_of(page)
        # The control: the result has no such attribute.
        codes[f"{name}_control"] = codes[name].replace(".sentiment.label", ".sentiment.labels")
    folder = tmp_path_factory.mktemp("code")
    for name, code in codes.items():
        (folder / f"{name}.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, "--no-error-summary", *(str(folder / f"{name}.py") for name in codes)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.stderr == ""
    found: dict[str, list[str]] = defaultdict(list)
    for line in done.stdout.splitlines():
        position, message = line.split(": ", 1)
        found[Path(position.split(":")[0]).stem].append(message)
    return found


def test_mypy_infers_the_types_of_correct_calls(messages: dict[str, list[str]]) -> None:
    revealed = [message.removeprefix("note: Revealed type is ").strip('"') for message in messages["calls"]]
    answer = "polyhead_client.types.Answer"
    assert [kind.replace("builtins.", "") for kind in revealed] == [
        f"typing.Iterator[{answer}]",
        f"list[{answer}]",
        f"list[{answer}]",
        "tuple[Any, ...]",
        answer,
        f"list[{answer}]",
    ]


def test_mypy_rejects_every_wrong_option(messages: dict[str, list[str]]) -> None:
    errors = messages["mistakes"]
    assert [message.split(":")[0] for message in errors if "error" in message] == ["error"] * 6, errors


@pytest.mark.parametrize("page", PAGES)
def test_python_of_the_page_passes_strict_type_checks(page: str, messages: dict[str, list[str]]) -> None:
    assert messages[page] == []
    assert any('has no attribute "labels"' in message for message in messages[f"{page}_control"])

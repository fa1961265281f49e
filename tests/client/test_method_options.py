"""Options as type checkers and ``help()`` see them, and as the methods take them."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any, Unpack

import pytest
from polyhead_client import (
    AnalyzeOptions,
    AsyncClient,
    Client,
    EmbedOptions,
    StreamAnalyzeOptions,
    StreamEmbedOptions,
    StreamOptions,
    UnaryOptions,
)
from polyhead_client.options import documented, resolve

from tests.support.demo import ROOT

METHODS: dict[str, Any] = {
    "stream": StreamAnalyzeOptions,
    "stream_embed": StreamEmbedOptions,
    "stream_classify": StreamOptions,
    "stream_sentiment": StreamOptions,
    "analyze": AnalyzeOptions,
    "embed": EmbedOptions,
    "embeddings": EmbedOptions,
    "classify": UnaryOptions,
    "sentiment": UnaryOptions,
}


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("method", METHODS)
def test_help_describes_every_option_with_its_type_and_default(client: type[Any], method: str) -> None:
    text = pydoc.render_doc(getattr(client, method), renderer=pydoc.plaintext)  # type: ignore[attr-defined]
    signature = inspect.signature(getattr(client, method))
    for name in METHODS[method].__optional_keys__:
        default = repr(signature.parameters[name].default)
        assert f"    {name} (" in text, name
        description = " ".join(text.split(f"    {name} (")[1].split("\n    \n")[0].split())
        assert f"default {default}): " in description, name
    assert "**options" not in text


def test_help_shows_the_deadline_of_info() -> None:
    assert "deadline_s (float | None, default 30.0): Seconds" in pydoc.render_doc(Client.info)


def test_embedding_options_are_not_options_of_classify() -> None:
    with pytest.raises(TypeError, match="unexpected option 'encoding'; the options are truncation"), Client() as client:
        client.classify(["text"], encoding="float16")  # type: ignore[call-arg]


def test_unknown_option_of_a_unary_call_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="deadline"), Client() as client:
        client.analyze(["text"], deadline=3)  # type: ignore[call-arg]


def test_missing_options_have_their_defaults() -> None:
    options = resolve(AnalyzeOptions, {"encoding": "int8"})
    assert options["encoding"] == "int8"
    assert (options["truncation"], options["tasks"], options["deadline_s"]) == ("truncate", (), 30.0)


def test_documented_keeps_a_method_without_docstring() -> None:  # as with python -OO
    def method(**options: Unpack[StreamOptions]) -> None: ...

    assert documented(StreamOptions)(method).__doc__ is None


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

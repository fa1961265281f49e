"""Options as ``help()`` shows them, and as the methods take them."""

from __future__ import annotations

import inspect
import pydoc
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
def test_help_describes_every_option_with_its_type_and_default(client: type[Any]) -> None:
    for method in METHODS:
        require_described(client, method)


def require_described(client: type[Any], method: str) -> None:
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

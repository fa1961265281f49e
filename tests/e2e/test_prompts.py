"""A prompt that is named in a request gives the answers of texts with the prompt written out, on every wire."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from polyhead_client import Answer, Client

from bench.harness.servers import free_port
from tests.compat.recordings import VERSIONS, write_bundle
from tests.support.command import polyhead

from .conftest import Start
from .test_http import post

pytestmark = pytest.mark.model
PREFIX = "query: "
# The last one exceeds the token limit of the model.
TEXTS = ["my refund", "", "lovely fabric and a perfect fit", "the box went back to the depot " * 20]
WRITTEN_OUT = [PREFIX + text for text in TEXTS]


@pytest.fixture(scope="module")
def served(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The gRPC and the HTTP address of a server of a tiny model with a prompt."""
    http = f"127.0.0.1:{free_port()}"
    server = start(write_bundle(VERSIONS[-1], tmp_path_factory.mktemp("prompts")), "--http-listen", http)
    server.wait_until_serving()
    return server.target, http


def numbers(answer: Answer) -> list[float]:
    scores = {score.label: score.probability for score in answer.classification.scores}
    return [*answer.embedding.tolist(), *(scores[label] for label in sorted(scores)), answer.sentiment.probability]


def test_answers_are_those_of_the_written_out_texts(served: tuple[str, str]) -> None:
    with Client(served[0]) as client:
        assert client.info().prompts == {"query": PREFIX}
        expected = client.analyze(WRITTEN_OUT)
        for answers in (client.analyze(TEXTS, prompt="query"), list(client.stream(TEXTS, prompt="query"))):
            for answer, other in zip(answers, expected, strict=True):
                np.testing.assert_allclose(numbers(answer), numbers(other), atol=1e-5)
                found, wanted = answer.unwrap().truncation, other.unwrap().truncation
                assert (found.tokens_seen, found.tokens_used) == (wanted.tokens_seen, wanted.tokens_used)
            cut, whole = answers[-1].unwrap().truncation, expected[-1].unwrap().truncation
            assert (cut.cut_at_code_point or 0) + len(PREFIX) == whole.cut_at_code_point
        plain = client.analyze(TEXTS)
        assert np.abs(np.subtract(numbers(plain[0]), numbers(expected[0]))).max() > 1e-3


def test_http_answers_are_those_of_the_written_out_texts(served: tuple[str, str]) -> None:
    def embeddings(path: str, body: dict[str, Any]) -> Any:
        status, content = post(served[1], path, body)
        assert status == 200, content
        reply = json.loads(content)
        return (
            reply if isinstance(reply, list) else [one["embedding"] for one in reply.get("data", reply.get("answers"))]
        )

    for path, field, prompt in (
        ("/v1/analyze", "texts", "prompt"),
        ("/v1/embeddings", "input", "prompt_name"),
        ("/embed", "inputs", "prompt_name"),
    ):
        found = embeddings(path, {field: TEXTS, prompt: "query"})
        np.testing.assert_allclose(found, embeddings(path, {field: WRITTEN_OUT}), atol=1e-5)


def test_command_names_a_prompt(served: tuple[str, str]) -> None:
    def lines(*arguments: str) -> list[Any]:
        code, output, error = polyhead(*arguments, "--target", served[0])
        assert code == 0, error
        return [json.loads(line) for line in output.splitlines()]

    (found,), (expected,) = lines("embed", "--prompt", "query", TEXTS[0]), lines("embed", WRITTEN_OUT[0])
    np.testing.assert_allclose(found["embedding"], expected["embedding"], atol=1e-5)
    assert lines("info", "--json")[0]["prompts"]["query"] == PREFIX

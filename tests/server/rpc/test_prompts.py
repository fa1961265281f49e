"""Prompts over a real socket: named in a request, described by GetModelInfo, refused item by item if unknown."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2, status_pb2
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2
from polyhead_server.errors import UnknownPromptError

from tests.support.fake_engine import embedding_of
from tests.support.inference_server import InferenceServer, collect, embedding, items

pytestmark = pytest.mark.timeout(60)


def reason(error: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert error.details[0].Unpack(info)
    return str(info.reason)


async def test_model_info_lists_the_prompts_with_their_texts(running: InferenceServer) -> None:
    info = (await running.stub.GetModelInfo(pb2.GetModelInfoRequest())).model
    assert [(prompt.name, prompt.text) for prompt in info.prompts] == [("passage", "w8 w9 "), ("query", "w7 ")]


async def test_each_message_of_a_stream_names_its_own_prompt(running: InferenceServer) -> None:
    prompts = ["query", "", "passage"]
    requests = (
        pb2.StreamAnalyzeRequest(items=items(["w1"]), options=item_pb2.ItemOptions(prompt=prompt)) for prompt in prompts
    )
    answers = await collect(running.stub.StreamAnalyze(requests))
    assert [embedding(answer) for answer in answers] == [embedding_of(text) for text in ("w7 w1", "w1", "w8 w9 w1")]


async def test_unknown_prompt_is_refused_for_each_item_and_the_stream_continues(running: InferenceServer) -> None:
    options = [item_pb2.ItemOptions(prompt="queries"), item_pb2.ItemOptions(prompt="query")]
    requests = (pb2.StreamEmbedRequest(items=items(["w1", "w2"]), options=one) for one in options)
    answers = await collect(running.stub.StreamEmbed(requests))
    assert [answer.item_id for answer in answers] == ["w1", "w2"] * 2
    for answer in answers[:2]:
        assert (answer.error.code, reason(answer.error)) == (3, "UNKNOWN_PROMPT")
        assert answer.error.message == "the model has no such prompt; its prompts are: passage, query"
    assert embedding(answers[2]) == embedding_of("w7 w1")
    unary = await running.stub.Analyze(pb2.AnalyzeRequest(items=items(["w1"]), options=options[0]))
    assert reason(unary.answers[0].error) == "UNKNOWN_PROMPT"


def test_message_about_an_unknown_prompt_is_short_whatever_the_model() -> None:
    assert str(UnknownPromptError(())) == "the model has no such prompt; it has none; omit the name"
    many = str(UnknownPromptError([f"p{number:063}" for number in range(200)]))
    assert many.endswith("7 and 192 more")
    assert len(many) < 700

"""Stubs and bundles of earlier releases with today's server, and their server's answers with today's client."""

from __future__ import annotations

from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import polyhead_bundle
import pytest
from google.protobuf import descriptor_pb2
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2
from polyhead_bundle import FORMAT_VERSION
from polyhead_client import Client

from tests.e2e.conftest import Server, Start, start  # noqa: F401, the fixture

from .calls import CALLS
from .recordings import SERVICE, STUBS, VERSIONS, Recording, Stubs, load, losses, write_bundle
from .renew import image

RECORDINGS = {recording.name: recording for recording in load()}
FROM_CLIENT = [name for name, recording in RECORDINGS.items() if recording.values is not None]


@pytest.fixture(scope="module")
def stubs() -> Stubs:
    return Stubs(STUBS.read_bytes())


@pytest.fixture(scope="module")
def servers(start: Start, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Server]:  # noqa: F811
    """A server for each golden bundle."""
    folder = tmp_path_factory.mktemp("bundles")
    found = {version: start(write_bundle(version, folder / str(version)), "--device", "cpu") for version in VERSIONS}
    for server in found.values():
        server.wait_until_serving()
    return found


def test_a_bundle_of_every_readable_version_is_recorded() -> None:
    assert VERSIONS[-1] == FORMAT_VERSION, "run `python -m tests.compat.renew`"


def test_newest_bundle_has_everything_that_a_bundle_can_have(tmp_path: Path) -> None:
    manifest = polyhead_bundle.load(write_bundle(VERSIONS[-1], tmp_path)).manifest
    assert manifest.novelty
    assert manifest.reference
    assert any(head.abstention for head in manifest.heads)
    assert any(head.prediction_sets for head in manifest.heads)
    assert {recording.version for recording in RECORDINGS.values()} == set(VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_bundle_loads(version: int, tmp_path: Path) -> None:
    bundle = polyhead_bundle.load(write_bundle(version, tmp_path))
    assert (bundle.format_version, bundle.manifest.name) == (version, "golden")


@pytest.mark.parametrize("name", RECORDINGS)
def test_server_answers_recorded_requests_as_then(name: str, servers: dict[int, Server], stubs: Stubs) -> None:
    recording = RECORDINGS[name]
    with grpc.insecure_channel(servers[recording.version].target) as channel:
        responses = stubs.call(channel, recording.method, recording.requests)
    then, now = (stubs.read(recording.method, messages) for messages in (recording.responses, responses))
    assert then
    assert list(losses(then, now)) == []


@pytest.mark.parametrize("name", FROM_CLIENT)
def test_client_reads_recorded_answers_as_then(name: str) -> None:
    recording = RECORDINGS[name]
    with RecordedServer(recording) as target, Client(target) as client:
        call = CALLS[name].client
        assert call is not None
        assert list(losses(recording.values, call(client))) == []


class RecordedServer:
    """A server of that time: it answers every call of the recorded method with the recorded response."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._pool = futures.ThreadPoolExecutor(2)
        self._server = grpc.server(self._pool)

    def __enter__(self) -> str:
        handler: Any = grpc.unary_unary_rpc_method_handler(self._respond)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {self._recording.method: handler}),)
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return f"127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()

    def _respond(self, request: bytes, _: grpc.ServicerContext) -> bytes:
        """Answers with the ids of the request, which the client chooses anew for each call."""
        (response,) = self._recording.responses
        if self._recording.method != "Analyze":
            return response
        parsed = pb2.AnalyzeResponse.FromString(response)
        items = pb2.AnalyzeRequest.FromString(request).items
        for answer, item in zip(parsed.answers, items, strict=True):
            answer.item_id = item.item_id
        return parsed.SerializeToString()


def test_recorded_calls_cover_every_method(stubs: Stubs) -> None:
    methods = {method.name for method in pb2.DESCRIPTOR.services_by_name["InferenceService"].methods}
    assert {recording.method for recording in RECORDINGS.values()} == methods


def test_stubs_know_only_the_fields_of_their_image(stubs: Stubs) -> None:
    """Control: they are not those that this process has loaded, which know every field."""
    older = descriptor_pb2.FileDescriptorSet.FromString(image())
    (file,) = (file for file in older.file if file.name.endswith("item.proto"))
    (answer,) = (message for message in file.message_type if message.name == "Answer")
    del answer.field[0]  # item_id
    data = pb2.AnalyzeResponse(answers=[item_pb2.Answer(item_id="1", result=item_pb2.Result())]).SerializeToString()
    assert stubs.read("Analyze", [data]) == [{"item_id": "1", "result": {}}]
    assert Stubs(older.SerializeToString()).read("Analyze", [data]) == [{"result": {}}]


@pytest.mark.parametrize(
    ("now", "found"),
    [
        ({"label": "app", "scores": [0.5, 0.25]}, []),
        ({"label": "app", "scores": [0.5001, 0.25], "new": 1}, []),
        ({"scores": [0.5, 0.25]}, ["$.label is missing"]),
        ({"label": "billing", "scores": [0.5, 0.25]}, ["$.label is 'billing', not 'app'"]),
        ({"label": "app", "scores": [0.6, 0.25]}, ["$.scores[0] is 0.6, not 0.5"]),
        ({"label": "app", "scores": [0.5]}, ["$.scores has other elements: [0.5], not [0.5, 0.25]"]),
        ([], ["$.label is missing", "$.scores is missing"]),
    ],
)
def test_what_an_answer_lacks_is_found(now: object, found: list[str]) -> None:
    assert list(losses({"label": "app", "scores": [0.5, 0.25]}, now)) == found


def test_texts_for_people_and_settings_may_differ() -> None:
    assert list(losses({"message": "old", "server_version": "1.0"}, {"message": "new", "server_version": "2"})) == []
    assert list(losses({"message": "old"}, {})) == ["$.message is missing"]

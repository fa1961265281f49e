"""Several models of one server process: each protocol names them, and each is reloaded and measured for itself."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_client import Answer, AsyncClient, Client, InvalidRequestError
from polyhead_server.rpc.dialects.descriptors import TYPES

from bench.harness.servers import free_port
from tests.compat.recordings import VERSIONS, write_bundle
from tests.support.command import polyhead
from tests.support.demo import BIN

from .conftest import Server, Start, put
from .test_http import post

pytestmark = pytest.mark.model
TEXTS = ["where is my refund", "lovely fabric and a perfect fit"]
# Dimensions of the embedding of the tiny model.
TINY_DIMENSIONS = 8
NAMES = ["demo", "tiny"]


@dataclass
class Served:
    """A server of the models ``demo``, the default, and ``tiny``.

    Attributes:
        server: Its process.
        http: Address of its HTTP API.
        admin: Target of its admin service.
        metrics: Address of its metrics.
        tiny: Link to the bundle of ``tiny``.
        retrained: A bundle that may replace it.
    """

    server: Server
    http: str
    admin: str
    metrics: str
    tiny: Path
    retrained: Path

    def metric(self, name: str, **labels: str) -> float:
        """Returns the value of a series; 0 if there is none."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        written = ",".join(f'{key}="{value}"' for key, value in labels.items())
        found = [line for line in lines if line.startswith(f"{name}{{{written}}} ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0


def write_tiny(folder: Path) -> tuple[Path, Path]:
    """Writes a tiny model, and one with another temperature of its first head, as after a new training."""
    trained = bundle.load(write_bundle(VERSIONS[-1], folder / "trained"))
    first, *others = trained.manifest.heads
    heads = (dataclasses.replace(first, temperature=3 * first.temperature), *others)
    manifest = dataclasses.replace(trained.manifest, heads=heads)
    files = {name: trained.path / name for name in manifest.files}
    return trained.path, bundle.write(folder / "retrained", manifest, files).path


@pytest.fixture(scope="module")
def served(start: Start, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("models")
    trained, retrained = write_tiny(folder)
    put(trained, folder / "tiny")
    http, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    flags = ("--http-listen", http, "--metrics-listen", metrics, "--admin-listen", f"unix:{folder}/admin")
    limits = ("--model-settings", "tiny.max-items-per-message=8,tiny.reload-interval-s=0")
    server = start(Path(f"demo={demo_bundle}"), f"tiny={folder / 'tiny'}", *flags, *limits)
    server.wait_until_serving()
    return Served(server, http, f"unix:{folder}/admin", metrics, folder / "tiny", retrained)


def json_post(served: Served, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Makes a call with headers, whose names have underscores here."""
    request = urllib.request.Request(
        f"http://{served.http}{path}",
        json.dumps(body).encode(),
        {name.replace("_", "-"): value for name, value in headers.items()},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - local
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def embeddings(served: Served, model: str | None) -> list[Any]:
    """Returns the embeddings of ``TEXTS`` by the model's own client."""
    with Client(served.server.target, model=model) as client:
        return [answer.unwrap().embedding for answer in client.embed(TEXTS)]


def test_metadata_names_the_model(served: Served) -> None:
    tiny, demo = embeddings(served, "tiny"), embeddings(served, "demo")
    assert len(tiny[0]) == TINY_DIMENSIONS != len(demo[0])
    # Without a name the first model answers.
    np.testing.assert_array_equal(embeddings(served, None), demo)
    with Client(served.server.target, model="tiny") as client:
        streamed: Any = [answer.unwrap().embedding for answer in client.stream_embed(TEXTS)]
        np.testing.assert_allclose(streamed, tiny, atol=1e-5)
        info = client.info()
        assert (info.name, info.model_names) == ("tiny", ("demo", "tiny"))
        assert info.limits.max_items_per_message == 8
        # A model's id names it as well.
        np.testing.assert_array_equal(embeddings(served, info.model_id), tiny)
    with Client(served.server.target) as client:
        info = client.info()
        assert (info.name, info.embedding.dimensions) == ("demo", len(demo[0]))
        assert info.limits.max_items_per_message > 8


async def test_unknown_name_is_not_found(served: Served) -> None:
    with Client(served.server.target, model="other") as client:
        for call in (lambda: client.analyze(TEXTS), lambda: list(client.stream(TEXTS)), client.info):
            with pytest.raises(InvalidRequestError) as caught:
                call()
            assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
            assert "'demo', 'tiny'" in str(caught.value)
    async with AsyncClient(served.server.target, model="other") as asynchronous:
        with pytest.raises(InvalidRequestError, match="'demo', 'tiny'"):
            await asynchronous.analyze(TEXTS)


def test_commands_name_the_model(served: Served) -> None:
    code, out, _ = polyhead("info", "--json", "--target", served.server.target, "--model", "tiny")
    assert (code, json.loads(out)["name"], json.loads(out)["model_names"]) == (0, "tiny", NAMES)
    assert "models     demo, tiny" in polyhead("info", "--target", served.server.target)[1]
    code, out, _ = polyhead("embed", "--target", served.server.target, "--model", "tiny", TEXTS[0])
    assert (code, len(json.loads(out)["embedding"])) == (0, TINY_DIMENSIONS)
    code, _, error = polyhead("embed", "--target", served.server.target, "--model", "other", TEXTS[0])
    assert code == 2
    assert "'demo', 'tiny'" in error


def infer_request(model: str, texts: list[str] = TEXTS) -> Any:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts), 1]}
    contents = {"bytes_contents": [text.encode() for text in texts]}
    return TYPES["inference.ModelInferRequest"](
        model_name=model, id=model, inputs=[{**tensor, "contents": contents}], outputs=[{"name": "embedding"}]
    )


def floats(response: Any) -> Any:
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(list(response.outputs[0].shape))


def call(channel: grpc.Channel, path: str, request: Any, response: str, **options: Any) -> Any:
    method: Any = channel.unary_unary(path, lambda one: one.SerializeToString(), TYPES[response].FromString)
    return method(request, timeout=60, **options)


def test_open_inference_over_grpc_names_the_model_in_each_request(served: Served) -> None:
    service = "/inference.GRPCInferenceService"
    expected = {name: embeddings(served, name) for name in NAMES}
    with grpc.insecure_channel(served.server.target) as channel:
        for name in NAMES:
            response = call(channel, f"{service}/ModelInfer", infer_request(name), "inference.ModelInferResponse")
            assert response.model_name == name
            np.testing.assert_allclose(floats(response), expected[name], atol=1e-5)
            request = TYPES["inference.ModelMetadataRequest"](name=name)
            assert call(channel, f"{service}/ModelMetadata", request, "inference.ModelMetadataResponse").name == name
        index = call(
            channel,
            f"{service}/RepositoryIndex",
            TYPES["inference.RepositoryIndexRequest"](),
            "inference.RepositoryIndexResponse",
        )
        assert [(one.name, one.state) for one in index.models] == [("demo", "READY"), ("tiny", "READY")]
        stats = call(
            channel,
            f"{service}/ModelStatistics",
            TYPES["inference.ModelStatisticsRequest"](),
            "inference.ModelStatisticsResponse",
        )
        assert [one.name for one in stats.model_stats] == NAMES
        # One stream may name several models, and one that there is not.
        method: Any = channel.stream_stream(
            f"{service}/ModelStreamInfer",
            lambda one: one.SerializeToString(),
            TYPES["inference.ModelStreamInferResponse"].FromString,
        )
        requests = [infer_request(name) for name in ("tiny", "demo", "other", "tiny")]
        responses = list(method(iter(requests), timeout=60))
        for response, name in zip(responses, ("tiny", "demo", "", "tiny"), strict=True):
            if name:
                np.testing.assert_allclose(floats(response.infer_response), expected[name], atol=1e-5)
            else:
                assert "'demo', 'tiny'" in response.error_message
        for name in ("other", ""):
            with pytest.raises(grpc.RpcError) as caught:
                call(channel, f"{service}/ModelInfer", infer_request(name), "inference.ModelInferResponse")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert "'demo', 'tiny'" in str(caught.value.details())


def test_text_embeddings_inference_answers_with_the_first_model(served: Served) -> None:
    expected = {name: embeddings(served, name) for name in NAMES}
    request = TYPES["tei.v1.EmbedRequest"](inputs=TEXTS[0].encode(), normalize=False)
    with grpc.insecure_channel(served.server.target) as channel:

        def embed(*metadata: tuple[str, str]) -> Any:
            return call(channel, "/tei.v1.Embed/Embed", request, "tei.v1.EmbedResponse", metadata=metadata).embeddings

        np.testing.assert_allclose(embed(), expected["demo"][0], atol=1e-5)
        np.testing.assert_allclose(embed(("x-polyhead-model", "tiny")), expected["tiny"][0], atol=1e-5)
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            embed(("x-polyhead-model", "other"))
    body = {"inputs": TEXTS, "normalize": False}
    assert len(json_post(served, "/embed", body)[1][0]) == len(expected["demo"][0])
    assert len(json_post(served, "/embed", body, x_polyhead_model="tiny")[1][0]) == TINY_DIMENSIONS
    status, error = json_post(served, "/embed", body, x_polyhead_model="other")
    assert status == 404
    assert "'demo', 'tiny'" in error["error"]


def test_http_dialects_name_the_model(served: Served) -> None:
    expected = {name: embeddings(served, name) for name in NAMES}
    infer = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": TEXTS}]}
    for name in NAMES:
        openai = json_post(served, "/v1/embeddings", {"input": TEXTS, "model": name})[1]
        assert openai["model"] == name
        np.testing.assert_allclose([one["embedding"] for one in openai["data"]], expected[name], atol=1e-5)
        analyzed = json_post(served, "/v1/analyze", {"texts": TEXTS, "model": name})[1]["answers"]
        np.testing.assert_allclose([one["embedding"] for one in analyzed], expected[name], atol=1e-5)
        wanted = infer | {"outputs": [{"name": "embedding"}], "model_name": name}
        (output,) = json_post(served, f"/v2/models/{name}/infer", wanted)[1]["outputs"]
        np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected[name], atol=1e-5)
        assert json.loads(post(served.http, f"/v1/info?model={name}", None)[1])["name"] == name
        assert post(served.http, f"/v2/models/{name}/ready", None)[0] == 200
    default = json_post(served, "/v1/embeddings", {"input": TEXTS})[1]
    assert default["model"] == "demo"
    listed = json.loads(post(served.http, "/v1/models", None)[1])["data"]
    assert [one["id"] for one in listed] == NAMES
    index = json_post(served, "/v2/repository/index", {})[1]
    assert [one["name"] for one in index] == NAMES
    assert [one["name"] for one in json.loads(post(served.http, "/v2/models/stats", None)[1])["model_stats"]] == NAMES
    assert json.loads(post(served.http, "/v1/info", None)[1])["model_names"] == NAMES


def test_unknown_name_has_the_form_of_each_http_dialect(served: Served) -> None:
    status, body = json_post(served, "/v1/embeddings", {"input": TEXTS, "model": "other"})
    assert (status, body["error"]["type"], body["error"]["code"]) == (404, "not_found_error", "model_not_found")
    assert "'demo', 'tiny'" in body["error"]["message"]
    status, body = json_post(served, "/v1/analyze", {"texts": TEXTS, "model": "other"})
    assert (status, body["error"]["reason"]) == (404, "MODEL_NOT_FOUND")
    status, body = json_post(served, "/v2/models/other/infer", {})
    assert (status, "'demo', 'tiny'" in body["error"]) == (404, True)
    status, body = json_post(served, "/v2/models/demo/infer", {"model_name": "tiny", "inputs": []})
    assert (status, "model_name" in body["error"]) == (400, True)
    assert post(served.http, "/v1/models/other", None)[0] == 404


def test_lines_of_json_are_answered_by_the_named_model(served: Served) -> None:
    for query, dimensions in (("?model=tiny", TINY_DIMENSIONS), ("", len(embeddings(served, "demo")[0]))):
        request = urllib.request.Request(
            f"http://{served.http}/v1/analyze{query}", b'"my refund"\n', {"content-type": "application/x-ndjson"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - local
            assert len(json.loads(response.read())["embedding"]) == dimensions


def test_metrics_count_for_each_model(served: Served) -> None:
    before = {name: served.metric("polyhead_items_total", model=name) for name in NAMES}
    # Texts with different tokens: equal ones would share a computation.
    with Client(served.server.target, model="tiny") as client:
        client.embed(["refund", "parcel", "soup", "box", "invoice"])
    assert served.metric("polyhead_items_total", model="tiny") == before["tiny"] + 5
    assert served.metric("polyhead_items_total", model="demo") == before["demo"]
    assert served.metric("polyhead_reloads_total", model="demo", outcome="refused") == 0
    with Client(served.server.target, model="tiny") as client:
        (answer,) = client.embed(["refund " * 100], truncation="error")
    assert answer.error
    assert served.metric("polyhead_item_errors_total", model="tiny", reason="TEXT_TOO_LONG") == 1
    assert served.metric("polyhead_item_errors_total", model="demo", reason="TEXT_TOO_LONG") == 0


def topic(answer: Answer) -> list[float]:
    classification: Any = answer.unwrap().classification
    return sorted(score.probability for score in classification.scores)


def test_reload_of_one_model_leaves_the_other_alone(served: Served) -> None:
    def reload(*flags: str) -> list[dict[str, Any]]:
        code, out, error = polyhead("admin", "reload", "--target", served.admin, *flags)
        assert code == 0, error
        return [json.loads(line) for line in out.splitlines()]

    with Client(served.server.target) as demo, Client(served.server.target, model="tiny") as tiny:
        expected, old = topic(demo.classify(TEXTS)[0]), topic(tiny.classify(TEXTS)[0])
        identity = demo.info().model_id
        ended = threading.Event()

        def texts() -> Any:
            yield TEXTS[0]
            while not ended.wait(0.005):
                yield TEXTS[0]

        # A stream of the other model, open during the reload.
        answers = demo.stream_classify(texts(), expected_fingerprints=demo.info())
        first = next(answers)
        put(served.retrained, served.tiny)
        (result,) = reload("--model", "tiny")
        assert result["model_name"] == "tiny"
        ended.set()
        seen = [first, *answers]
        np.testing.assert_allclose([topic(answer) for answer in seen], [expected] * len(seen), atol=1e-5)
        assert demo.info().model_id == identity
        new = topic(tiny.classify(TEXTS)[0])
        assert new[-1] < old[-1]
    code, out, _ = polyhead("admin", "stats", "--target", served.admin)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [row["model_name"] for row in rows]) == (0, NAMES)
    assert len({row["process_id"] for row in rows}) == 1
    (row,) = [
        json.loads(line)
        for line in polyhead("admin", "stats", "--target", served.admin, "--model", "demo")[1].splitlines()
    ]
    assert row["model_id"] == identity
    assert served.metric("polyhead_reloads_total", model="tiny", outcome="success") == 1
    assert served.metric("polyhead_reloads_total", model="demo", outcome="success") == 0
    assert [one["model_name"] for one in reload()] == NAMES
    code, _, error = polyhead("admin", "reload", "--target", served.admin, "--model", "other")
    assert (code, "'demo', 'tiny'" in error) == (2, True)


def test_refused_bundle_of_one_model_does_not_keep_the_other_back(served: Served, demo_bundle: Path) -> None:
    before = {name: served.metric("polyhead_reloads_total", model=name, outcome="success") for name in NAMES}
    target = served.tiny.resolve()
    put(demo_bundle, served.tiny)
    code, _, error = polyhead("admin", "reload", "--target", served.admin)
    put(target, served.tiny)
    assert code == 2
    assert "tiny: not reloaded" in error
    assert "reloaded: demo" in error
    assert served.metric("polyhead_reloads_total", model="demo", outcome="success") == before["demo"] + 1
    assert served.metric("polyhead_reloads_total", model="tiny", outcome="success") == before["tiny"]
    assert len(embeddings(served, "tiny")[0]) == TINY_DIMENSIONS


def test_both_models_answer_under_load_and_a_drain_answers_everything(
    start: Start, demo_bundle: Path, served: Served
) -> None:
    server = start(Path(f"demo={demo_bundle}"), f"tiny={served.tiny}")
    server.wait_until_serving()
    answered: dict[str, int] = dict.fromkeys(NAMES, 0)
    texts = [f"{TEXTS[number % 2]} {number}" for number in range(600)]

    def run(name: str) -> None:
        with Client(server.target, model=name) as client:
            for answer in client.stream(iter(texts)):
                embedding: Any = answer.unwrap().embedding
                assert len(embedding) == (TINY_DIMENSIONS if name == "tiny" else len(wide))
                answered[name] += 1

    wide = embeddings(served, "demo")[0]
    threads = [threading.Thread(target=run, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answered == dict.fromkeys(NAMES, len(texts))
    assert server.stop() == 0


def test_bundle_that_cannot_be_served_is_named(demo_bundle: Path, tmp_path: Path) -> None:
    serve: list[str | Path] = [BIN / "polyhead-serve", f"demo={demo_bundle}", f"broken={tmp_path}"]
    for flags in ([], ["--check"]):
        done = subprocess.run(
            [*serve, "--listen", f"127.0.0.1:{free_port()}", *flags],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 2
        assert str(tmp_path) in done.stderr.splitlines()[-1]

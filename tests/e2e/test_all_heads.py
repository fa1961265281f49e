"""A real bundle with a head of each kind behind a real server: the answers are those that training computes."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import pytest
from numpy.typing import NDArray
from polyhead_client import Answer, Client
from polyhead_export.eval_data import predictions
from polyhead_export.export import export
from polyhead_export.runners import Outputs, torch_runner
from polyhead_export.settings import Settings
from polyhead_training.config import Config, DataConfig
from polyhead_training.evaluation.probabilities import expected_values, probabilities
from polyhead_training.model import PolyheadModel
from polyhead_training.model_config import ModelConfig
from polyhead_training.runs.run_directory import write_run
from polyhead_training.tokenization import encode, load_tokenizer, pad

from bench.harness.servers import free_port
from tests.support import every_kind
from tests.support.command import polyhead
from tests.support.tiny_model import SENTENCES, ignore, make_model, make_tokenizer

from .conftest import START_S, Server, Start

pytestmark = pytest.mark.model

TEXTS = [*SENTENCES, "", "refund", "the zip jammed and the courier rang", *(text[:30] for text in SENTENCES)]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def trained() -> PolyheadModel:
    """A model with random weights, and a regression head on a scale of its own."""
    model = make_model(heads=[head.layer_settings() for head in every_kind.HEADS])
    model.standardize({"price": (100.0, 250.0)})
    model.fold()
    return model


@pytest.fixture(scope="module")
def source(trained: PolyheadModel, tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    run = tmp_path_factory.mktemp("runs") / "every"
    run.mkdir()
    config = Config(name="every", model=ModelConfig(heads=every_kind.HEADS), data=DataConfig(train=("a.jsonl",)))
    calibration: dict[str, Any] = {"temperatures": {"tags": 1.5, "stars": 0.8}, "thresholds": {"tags": [0.4, 0.5, 0.6]}}
    write_run(run, config, every_kind.HEADS, trained, make_tokenizer(), **calibration)
    return export(run, tmp_path_factory.mktemp("bundles") / "every", ignore, Settings(variants=("fp32",)))


@pytest.fixture(scope="module")
def expected(trained: PolyheadModel, source: bundle.Bundle) -> Outputs:
    """The outputs of the trained model for ``TEXTS``: the rows of each output by its name."""
    tokenizer = load_tokenizer(source.file("tokenizer.json"))
    run = torch_runner(trained)
    rows = [run(*pad([ids], 0)) for ids in encode(tokenizer, TEXTS, source.manifest.max_tokens)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def http_address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def server(start: Start, source: bundle.Bundle, http_address: str) -> Server:
    server = start(source.path, "--http-listen", http_address, "--device", "cpu")
    server.wait_until_serving()
    return server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


def require_expected(answers: list[Answer], source: bundle.Bundle, expected: Outputs) -> None:
    """Compares answers with the probabilities, predictions and values that training computes."""
    heads = {head.name: head for head in source.manifest.heads}

    def by_label(name: str) -> NDArray[np.float64]:
        return probabilities(heads[name].kind, expected[heads[name].output], heads[name].temperature)

    def predicted(name: str) -> NDArray[Any]:
        return predictions(expected, heads[name])

    values = expected_values(expected[heads["stars"].output], heads["stars"].label_values, heads["stars"].temperature)
    for row, answer in enumerate(answers):
        (tags,), (stars, price) = answer.label_sets, answer.scores
        for name, found in (
            ("topic", answer.classification.scores),
            ("tags", tags.scores),
            ("stars", stars.probabilities),
        ):
            by_name = {score.label: score.probability for score in found}
            assert [by_name[label] for label in heads[name].labels] == pytest.approx(by_label(name)[row], abs=TOLERANCE)
        assert answer.classification.label == heads["topic"].labels[predicted("topic")[row]]
        assert answer.sentiment.label == heads["sentiment"].labels[predicted("sentiment")[row]]
        applies = zip(heads["tags"].labels, predicted("tags")[row], strict=True)
        assert set(tags.labels) == {label for label, wanted in applies if wanted}
        assert list(tags.labels) == [score.label for score in tags.scores if score.label in tags.labels]
        assert stars.label == heads["stars"].labels[predicted("stars")[row]]
        assert stars.value == pytest.approx(values[row], abs=TOLERANCE)
        # The values are thousands.
        assert price.value == pytest.approx(predicted("price")[row], rel=1e-6)


def test_answers_are_those_of_training(client: Client, source: bundle.Bundle, expected: Outputs) -> None:
    require_expected(client.analyze(TEXTS), source, expected)
    require_expected(list(client.stream(TEXTS)), source, expected)


def test_pytorch_gives_the_same_answers(start: Start, source: bundle.Bundle, expected: Outputs) -> None:
    server = start(source.path, "--engine", "torch", "--device", "cpu")
    server.wait_until_serving()
    with Client(server.target) as client:
        assert client.info().runtime.engine == "torch"
        require_expected(client.analyze(TEXTS), source, expected)


def rounded(value: Any) -> Any:
    """Returns a JSON value with numbers that are equal if they differ by less than a float32 can tell reliably."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-5, abs=1e-6)
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def test_http_answers_are_those_of_grpc(client: Client, http_address: str) -> None:
    def post(path: str, body: Any) -> Any:
        connection = http.client.HTTPConnection(http_address, timeout=START_S)
        connection.request("POST", path, json.dumps(body))
        with connection.getresponse() as response:
            assert response.status == 200
            document = json.loads(response.read())
        connection.close()
        return document

    answers = [answer.unwrap().to_dict() for answer in client.analyze(TEXTS)]
    for found, answer in zip(post("/v1/analyze", {"texts": TEXTS})["answers"], answers, strict=True):
        # Two calls may be computed in different batches, which changes the last digits.
        for name in ("label_sets", "scores"):
            assert found[name] == rounded(answer[name])
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [len(TEXTS)], "data": TEXTS}]
    tensors = {one["name"]: one["data"] for one in post("/v2/models/every/infer", {"inputs": inputs})["outputs"]}
    assert [json.loads(labels) for labels in tensors["tags_labels"]] == [
        one["label_sets"][0]["labels"] for one in answers
    ]
    assert tensors["price_value"] == pytest.approx([one["scores"][1]["value"] for one in answers])
    (predicted,) = post("/predict", {"inputs": [[TEXTS[0]]], "head": "price"})
    assert predicted == [{"label": "price", "score": pytest.approx(answers[0]["scores"][1]["value"])}]


def test_commands_print_labels_and_scores(server: Server, client: Client) -> None:
    def printed(command: str) -> Any:
        code, output, error = polyhead(command, "--target", server.target, TEXTS[0])
        assert code == 0, error
        return json.loads(output)

    answer = client.analyze(TEXTS[:1])[0].unwrap().to_dict()
    assert printed("labels")["label_sets"] == answer["label_sets"]
    assert printed("score")["scores"] == answer["scores"]


def test_bundle_opens_where_the_bulk_job_reads_it(source: bundle.Bundle, client: Client) -> None:
    from polyhead_bulk import Annotator

    annotator = Annotator(source.path, threads=1)
    columns = annotator.answer_columns(TEXTS)
    annotator.close()
    answers = client.analyze(TEXTS)
    assert columns["tags_labels"].to_pylist() == [list(answer.label_sets[0].labels) for answer in answers]
    assert columns["stars_label"].to_pylist() == [answer.scores[0].label for answer in answers]
    assert columns["price_value"].to_pylist() == pytest.approx([answer.scores[1].value for answer in answers], rel=1e-6)

"""The installed commands against a real server with a real model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.demo import BIN

from .conftest import Server, Start

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def server(start: Start, demo_bundle: Path) -> Server:
    server = start(demo_bundle)
    server.wait_until_serving()
    return server


def polyhead(server: Server, *arguments: str, stdin: bytes = b"") -> tuple[int, list[dict[str, Any]], str]:
    """Runs the command and returns its exit status, the JSON lines on stdout, and stderr."""
    command = [str(BIN / "polyhead"), *arguments, "--target", server.target]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


def test_arguments_are_answered_in_order(server: Server) -> None:
    code, answers, _ = polyhead(server, "analyze", "my parcel never came", "love this kettle")
    assert code == 0
    assert [answer["id"] for answer in answers] == ["0", "1"]
    assert [answer["classification"]["scores"][0]["label"] for answer in answers] == ["delivery", "product"]
    assert [answer["sentiment"]["label"] for answer in answers] == ["negative", "positive"]
    assert [len(answer["embedding"]) for answer in answers] == [384, 384]


def test_info_reports_the_engine_device_and_variant_in_use(server: Server) -> None:
    code, (info,), _ = polyhead(server, "info", "--json")
    assert code == 0
    assert (info["runtime"]["engine"], info["runtime"]["device"], info["runtime"]["variant"]) == ("onnx", "cpu", "int8")
    assert [head["name"] for head in info["heads"]] == ["topic", "sentiment"]


def test_demo_model_is_far_better_than_the_majority_baseline(demo_run: Path) -> None:
    evaluation = json.loads((demo_run / "evaluation.json").read_text())["test"]
    for head, baseline in (("topic", 1 / 6), ("sentiment", 1 / 2)):
        assert evaluation[head]["majority_baseline"] == pytest.approx(baseline, abs=0.01)
        assert evaluation[head]["accuracy"] > 0.75

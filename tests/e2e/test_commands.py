"""The installed commands against a real server with a real model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.harness.servers import free_port
from tests.support.demo import BIN, ROOT

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


def test_line_that_is_not_utf8_does_not_affect_other_lines(server: Server) -> None:
    code, answers, _ = polyhead(server, "sentiment", stdin=b"good\n\xff\xfe\nbad\n")
    assert code == 1
    assert [answer.get("error", {}).get("reason") for answer in answers] == [None, "TEXT_NOT_UTF8", None]


def test_info_reports_the_engine_device_and_variant_in_use(server: Server) -> None:
    code, (info,), _ = polyhead(server, "info", "--json")
    assert code == 0
    assert (info["runtime"]["engine"], info["runtime"]["device"], info["runtime"]["variant"]) == ("onnx", "cpu", "int8")
    assert [head["name"] for head in info["heads"]] == ["topic", "sentiment"]


def test_unreachable_server_is_reported_on_one_line() -> None:
    target = f"127.0.0.1:{free_port()}"
    command = [str(BIN / "polyhead"), "classify", "text", "--target", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert target in done.stderr


def test_bundle_contains_no_paths_of_the_build_machine(demo_bundle: Path, demo_run: Path) -> None:
    traces = [str(path).encode() for path in (ROOT, demo_run.parent, Path(sys.prefix), Path.home())]
    for path in demo_bundle.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert [trace for trace in traces if len(trace) > 5 and trace in content] == [], path


def test_demo_model_is_far_better_than_the_majority_baseline(demo_run: Path) -> None:
    evaluation = json.loads((demo_run / "evaluation.json").read_text())["test"]
    for head, baseline in (("topic", 1 / 6), ("sentiment", 1 / 2)):
        assert evaluation[head]["majority_baseline"] == pytest.approx(baseline, abs=0.01)
        assert evaluation[head]["accuracy"] > 0.75


def test_loading_on_onnxruntime_imports_no_torch(demo_bundle: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import polyhead_server.lifecycle.server;"
        "from polyhead_server.inference.model import load_model; from polyhead_server.settings import Settings;"
        "model = load_model(Settings(bundle=Path(sys.argv[1])));"
        "assert model.engine.runtime.engine == 'onnx';"
        "print(sorted({'torch', 'transformers', 'polyhead_training'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, demo_bundle], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

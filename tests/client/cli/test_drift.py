"""``polyhead drift`` against a fake admin service: its table, JSON, page and exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf.duration_pb2 import Duration
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import admin_service_pb2_grpc
from polyhead_client.cli import drift as drift_module
from polyhead_client.cli.main import main

ODD = "<b>refund & return</b>"


def topic(drifted: bool) -> pb2.DriftMeasure:
    shares = ((ODD, 0.2, 0.7), ("delivery", 0.8, 0.31)) if drifted else ((ODD, 0.2, 0.21), ("delivery", 0.8, 0.79))
    bins = [pb2.DriftBin(name=name, reference=old, observed=new) for name, old, new in shares]
    return pb2.DriftMeasure(
        head="topic",
        name="answers",
        texts=1234,
        effective_texts=617.5,
        distance=0.36 if drifted else 0.0,
        p_value=1e-7 if drifted else 0.4,
        drifted=drifted,
        bins=bins,
    )


class FakeAdminService(admin_service_pb2_grpc.AdminServiceServicer):
    """Answers with these measures; None for a bundle without a reference."""

    measures: list[pb2.DriftMeasure] | None = None
    code = grpc.StatusCode.FAILED_PRECONDITION

    def GetDrift(self, _: pb2.GetDriftRequest, context: Any) -> pb2.GetDriftResponse:  # noqa: N802
        if self.measures is None:
            context.abort(self.code, "demo has no reference")
        return pb2.GetDriftResponse(
            model_id="demo",
            window=Duration(seconds=86400),
            texts=1234,
            uncounted_texts=5,
            reference_texts=400,
            min_distance=0.1,
            max_p_value=0.001,
            measures=self.measures,
        )


@pytest.fixture
def service() -> FakeAdminService:
    return FakeAdminService()  # type: ignore[abstract]  # no other method is called


def drift(*arguments: str | Path, **variables: str) -> Result:
    return CliRunner().invoke(main, ["drift", *map(str, arguments)], env=variables)


def test_drift_is_exit_code_1_and_names_what_changed(service: FakeAdminService, target: str) -> None:
    service.measures = [topic(drifted=True)]
    done = drift("--target", target)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("demo: 1,234 texts of the last ")
    assert lines[0].endswith(", 5 left out, compared with 400 validation texts")
    assert lines[1] == "drift: topic answers"
    assert re.fullmatch(r"topic +answers +1,234 +0\.360 +1e-07 +drift", lines[4])
    assert lines[-1] == f"topic answers: {ODD} 20.0 % -> 70.0 %, delivery 80.0 % -> 31.0 %"


def test_no_drift_is_exit_code_0(service: FakeAdminService, target: str) -> None:
    service.measures = [topic(drifted=False)]
    done = drift("--target", target)
    assert (done.exit_code, done.stdout.splitlines()[1]) == (0, "no drift")


def test_too_few_texts_are_exit_code_3(service: FakeAdminService, target: str) -> None:
    service.measures = [pb2.DriftMeasure(head="topic", name="answers", texts=3, distance=0.2)]
    done = drift("--target", target)
    assert done.exit_code == 3
    assert "not enough texts" in done.stdout


def test_json_has_all_fields(service: FakeAdminService, target: str) -> None:
    service.measures = [topic(drifted=True), pb2.DriftMeasure(name="embedding", texts=9, distance=0.2)]
    report = json.loads(drift("--json", "--target", target).stdout)
    assert report["drift"] == ["topic answers"]
    assert (report["window_s"], report["texts"], report["uncounted_texts"]) == (86400, 1234, 5)
    first, second = report["measures"]
    assert first["bins"][0] == {"name": ODD, "reference": 0.2, "observed": 0.7}
    assert (first["effective_texts"], second["p_value"], second["bins"]) == (617.5, None, [])


def test_labels_outside_of_the_encoding_of_stdout_are_escaped(service: FakeAdminService, target: str) -> None:
    service.measures = [topic(drifted=True)]
    service.measures[0].bins[0].name = "退款 😀"
    runner = CliRunner(charset="latin-1")
    table = runner.invoke(main, ["drift", "--target", target])
    assert (table.exit_code, r"\u9000\u6b3e \U0001f600" in table.stdout) == (1, True)
    report = json.loads(runner.invoke(main, ["drift", "--json", "--target", target]).stdout_bytes.decode())
    assert report["measures"][0]["bins"][0]["name"] == "退款 😀"


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_self_contained_and_escapes_labels(service: FakeAdminService, target: str, tmp_path: Path) -> None:
    service.measures = [topic(drifted=True)]
    path = tmp_path / "drift.html"
    assert drift("--html", path, "--target", target).exit_code == 1
    page = Page(path)
    assert ODD in page.text
    assert "20.0 → 70.0 %" in page.text
    assert not {"b", "script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href"} & set(page.attributes)
    assert "prefers-color-scheme: dark" in path.read_text()
    # Bars and their key have the color of drift.
    assert path.read_text().count('<section class="drifted">') == 1


def test_page_leaves_out_labels_that_changed_least(service: FakeAdminService, target: str, tmp_path: Path) -> None:
    bins = [pb2.DriftBin(name=f"label {number}", reference=0.01, observed=0.01 + number / 1e4) for number in range(100)]
    service.measures = [pb2.DriftMeasure(head="intent", name="answers", texts=9, distance=0.01, p_value=1, bins=bins)]
    assert drift("--html", tmp_path / "page", "--target", target).exit_code == 0
    text = Page(tmp_path / "page").text
    assert "70 others, which changed less, are not shown" in text
    assert "label 99" in text
    assert "label 10 " not in text


@pytest.mark.parametrize("code", [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INTERNAL])
def test_server_without_a_comparison_is_no_drift(service: FakeAdminService, target: str, code: grpc.StatusCode) -> None:
    service.code = code
    done = drift("--target", target)
    assert done.exit_code == 2
    assert "demo has no reference" in done.stderr
    assert done.stdout == ""


def test_page_that_cannot_be_written_is_no_drift(service: FakeAdminService, target: str, tmp_path: Path) -> None:
    service.measures = [topic(drifted=True)]
    done = drift("--html", tmp_path / "none" / "page", "--target", target)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{tmp_path}/none/page: No such file" in done.stderr


def test_defect_is_no_drift_and_shows_its_traceback(
    service: FakeAdminService, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> str:
        raise RuntimeError("a defect")

    service.measures = [topic(drifted=False)]
    monkeypatch.setattr(drift_module, "as_text", fail)
    done = drift("--target", target)
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert "RuntimeError: a defect" in done.stderr


def test_interrupt_is_no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(drift_module, "get_drift", interrupt)
    assert drift("--target", "unix:/nowhere").exit_code == 130


@pytest.mark.parametrize(("drifted", "exit_code"), [(True, 1), (False, 0)])
def test_reader_that_goes_away_does_not_change_the_exit_code(
    service: FakeAdminService, target: str, drifted: bool, exit_code: int
) -> None:
    service.measures = [topic(drifted)]
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "from polyhead_client.cli.main import main; main()", "drift", "--target", target]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (exit_code, b"")


@pytest.mark.parametrize(
    "arguments",
    [(), ("out",), ("out", "--target", "unix:/x", "--bundle", "b"), ("--bundle", "b", "--target", "unix:/x")],
)
def test_contradictory_arguments_are_refused(arguments: tuple[str, ...]) -> None:
    assert drift(*arguments).exit_code == 2


def test_target_of_the_environment_gives_way_to_files(tmp_path: Path) -> None:
    pytest.importorskip("orjson", reason="the files of a bulk job are read by polyhead[bulk]")
    done = drift(tmp_path, "--bundle", tmp_path, POLYHEAD_ADMIN_TARGET="unix:/nowhere")
    assert done.exit_code == 2
    assert "is not a folder that polyhead bulk has written" in done.stderr


def test_distance_that_is_no_number_is_a_usage_error() -> None:
    done = drift("out", "--bundle", "b", "--min-distance", "nan")
    assert (done.exit_code, "Invalid value for '--min-distance'" in done.stderr) == (2, True)

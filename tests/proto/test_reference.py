"""The protocol reference describes every element of the protocol."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from polyhead.v1 import admin_service_pb2, inference_service_pb2, item_pb2, model_pb2

from tests.support.demo import ROOT


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    page = tmp_path_factory.mktemp("reference") / "protocol.md"
    subprocess.run([sys.executable, "-m", "proto.reference", page], cwd=ROOT, check=True)
    return page.read_text()


def test_every_message_and_enum_has_a_section(reference: str) -> None:
    modules = (admin_service_pb2, inference_service_pb2, item_pb2, model_pb2)
    names = [
        name
        for module in modules
        for kind in ("message_types_by_name", "enum_types_by_name")
        for name in getattr(module.DESCRIPTOR, kind)
    ]
    assert len(names) > 30
    assert [name for name in names if f"\n### {name}\n" not in reference] == []


def test_every_row_has_a_description(reference: str) -> None:
    rows = re.findall(r"^\| `.*$", reference, re.MULTILINE)
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []


def test_rpcs_and_types_are_those_of_the_protocol(reference: str) -> None:
    stream = (
        "stream [StreamAnalyzeRequest](#streamanalyzerequest) | stream [StreamAnalyzeResponse](#streamanalyzeresponse)"
    )
    assert f"| `StreamAnalyze` | {stream} |" in reference
    assert "| `item_errors_total` | 14 | map of string to uint64 |" in reference
    assert "| `tasks` | 2 | repeated [Task](#task) |" in reference


def test_links_point_to_sections(reference: str) -> None:
    sections = {title.replace(".", "").lower() for title in re.findall(r"^### (.+)$", reference, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", reference)) <= sections

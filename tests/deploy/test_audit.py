"""The audit, with the real pip-audit and a vulnerability service on loopback."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

AUDIT: dict[str, Any] = runpy.run_path(str(ROOT / "deploy/audit.py"))
Findings, judge = AUDIT["Findings"], AUDIT["judge"]


class Service(BaseHTTPRequestHandler):
    """Speaks OSV: knows one vulnerability, of fragile 1.0, and breaks at the package broken."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fixed = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}
        affected = {"package": {"name": "fragile", "ecosystem": "PyPI"}, "ranges": [fixed]}
        one = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-11"], "summary": "breaks", "affected": [affected]}
        answer = {"vulns": [one]} if (asked["package"]["name"], asked["version"]) == ("fragile", "1.0") else {}
        self.send_response(500 if asked["package"]["name"] == "broken" else 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


def audit(folder: Path, url: str, lock: str, *flags: str, page: str = "") -> tuple[int, str]:
    (folder / "lock.txt").write_text(lock)
    (folder / "page.md").write_text(page)
    command = [sys.executable, str(ROOT / "deploy/audit.py"), str(folder / "lock.txt"), *flags]
    command += ["--osv-url", url, "--explained", str(folder / "page.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_packages_without_known_vulnerabilities_pass(tmp_path: Path, url: str) -> None:
    assert audit(tmp_path, url, "fragile==1.1\nsolid==2.0\n") == (
        0,
        "audit: 2 packages, 0 vulnerabilities, 0 unexplained\n",
    )


def test_vulnerability_fails_and_says_what_mends_it(tmp_path: Path, url: str) -> None:
    code, said = audit(tmp_path, url, "fragile==1.0\n")
    assert code == 1
    assert "fragile 1.0: PYSEC-2026-1, CVE-2026-11; mended in 1.1" in said


@pytest.mark.parametrize("name", ["PYSEC-2026-1", "CVE-2026-11"])
def test_vulnerability_that_the_page_explains_passes(tmp_path: Path, url: str, name: str) -> None:
    code, said = audit(
        tmp_path, url, "fragile==1.0\n", page=f"| id | why |\n| --- | --- |\n| `{name}` | not reached |\n"
    )
    assert (code, said) == (0, "audit: 1 packages, 1 vulnerabilities, 0 unexplained\n")


@pytest.mark.parametrize(("flags", "expected"), [((), 0), (("--required",), 1)])
def test_service_that_does_not_answer_is_no_clean_audit(tmp_path: Path, flags: tuple[str, ...], expected: int) -> None:
    code, said = audit(tmp_path, "http://127.0.0.1:9/v1/query", "solid==2.0\n", *flags)
    assert code == expected
    assert said.startswith("audit: NOT DONE: ")


@pytest.mark.parametrize(("flags", "expected"), [((), 0), (("--required",), 1)])
def test_lock_without_an_answer_does_not_stop_the_work(
    tmp_path: Path, url: str, flags: tuple[str, ...], expected: int
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("broken==1.0\n")
    code, said = audit(tmp_path, url, "solid==2.0\n", str(other), *flags)
    assert code == expected
    assert said.startswith("audit: NOT DONE for other.txt: ")
    assert said.endswith("audit: 1 packages, 0 vulnerabilities, 0 unexplained\n")


def test_vulnerability_fails_also_where_another_lock_has_no_answer(tmp_path: Path, url: str) -> None:
    other = tmp_path / "other.txt"
    other.write_text("broken==1.0\n")
    assert audit(tmp_path, url, "fragile==1.0\n", str(other))[0] == 1


def test_package_that_is_unknown_fails_unless_all_are(capsys: pytest.CaptureFixture[str]) -> None:
    unknown = {"own": "not found"}
    assert judge(Findings(audited={"solid 2.0"}, unknown=unknown), set(), required=False) == 1
    assert "the service does not know them: own" in capsys.readouterr().err
    # As behind a mirror that passes nothing on.
    assert judge(Findings(unknown=unknown), set(), required=False) == 0
    assert "NOT DONE: the service answered for none" in capsys.readouterr().err

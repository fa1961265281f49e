"""The checks of the distributions; tests/contract builds them and looks at their content."""

from __future__ import annotations

import io
import runpy
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.demo import ROOT

PROGRAM: dict[str, Any] = runpy.run_path(str(ROOT / "deploy/distributions.py"))
Distributions, differences, relative_links = (
    PROGRAM[name] for name in ("Distributions", "differences", "relative_links")
)


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("[guide](docs/guides/train.md) [licence](LICENSE)", ["docs/guides/train.md", "LICENSE"]),
        ("[![badge](docs/badge.svg)](https://example.org)", ["docs/badge.svg"]),
        ("[![badge](https://example.org/badge.svg)](LICENSE)", ["LICENSE"]),
        ("[up](../README.md) [absolute](/LICENSE)", ["../README.md", "/LICENSE"]),
        ("[page](https://example.org/a) [here](#quickstart) [mail](mailto:a@example.org)", []),
        ("`[code](file)`\n\n```python\ntable[row](column)\n```\n", []),
    ],
)
def test_relative_links_are_found(text: str, links: list[str]) -> None:
    assert relative_links(text) == links


@pytest.mark.parametrize("folder", [ROOT, ROOT.parent])
def test_source_tree_is_never_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: pytest.fail(f"would delete {path}"))
    with pytest.raises(SystemExit) as caught:
        PROGRAM["main"]([str(folder)])
    assert caught.value.code == 2
    assert "holds the source tree" in capsys.readouterr().err


def test_distributions_with_other_bytes_are_reported(tmp_path: Path) -> None:
    def built(folder: str, sdist: bytes, wheel: bytes) -> Any:
        (tmp_path / folder).mkdir()
        paths = tmp_path / folder / "polyhead-1.tar.gz", tmp_path / folder / "polyhead-1-py3-none-any.whl"
        for path, content in zip(paths, (sdist, wheel), strict=True):
            path.write_bytes(content)
        return Distributions(*paths)

    one = built("one", b"sdist", b"wheel")
    assert differences(one, built("same", b"sdist", b"wheel")) == []
    assert differences(one, built("sdist", b"other", b"wheel")) == ["polyhead-1.tar.gz is not reproducible"]
    assert differences(one, built("wheel", b"sdist", b"other")) == ["polyhead-1-py3-none-any.whl is not reproducible"]


def test_unpacked_tree_has_other_times_and_permissions_and_still_its_programs(tmp_path: Path) -> None:
    sdist = tmp_path / "polyhead-1.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name, mode in (("PKG-INFO", 0o644), ("README.md", 0o644), ("deploy/install.sh", 0o755)):
            member = tarfile.TarInfo(f"polyhead-1/{name}")
            member.mode, member.mtime = mode, 1_700_000_000
            archive.addfile(member, io.BytesIO())
    root = PROGRAM["unpack"](sdist, tmp_path / "source")
    files = {path.relative_to(root).as_posix(): path.stat() for path in root.rglob("*") if path.is_file()}
    assert {name: file.st_mode & 0o777 for name, file in files.items()} == {
        "README.md": 0o600,
        "deploy/install.sh": 0o700,
    }
    assert {file.st_mtime for file in files.values()} == {1_000_000_000}

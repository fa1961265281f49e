"""A bundle is uploaded to the hub in one commit; a failure is reported in one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polyhead_bundle as bundle
import pytest
from polyhead_export.interop import push_to_hub
from polyhead_export.interop.push_to_hub import PushError, push_bundle


def test_bundle_is_uploaded_in_one_private_commit(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, repository: str, **fields: Any) -> None:
            calls.append((repository, fields))

        def repo_info(self, repository: str) -> SimpleNamespace:
            return SimpleNamespace(private=True)

        def upload_folder(self, **fields: Any) -> SimpleNamespace:
            calls.append((fields.pop("repo_id"), fields))
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr(push_to_hub, "HfApi", Api)
    found = bundle.load(bundle_dir)
    assert push_bundle(found, "me/tiny") == "https://hub/commit"
    (first, made), (second, sent) = calls
    assert first == second == "me/tiny"
    assert made["private"] is True
    assert (sent["folder_path"], sent["commit_message"]) == (bundle_dir, found.model_id)
    # The hub adds a file of its own beside that folder, which a bundle must not hold.
    assert sent["path_in_repo"] == "bundle"


def test_public_repository_is_rejected_and_left_unchanged(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def create_repo(self, repository: str, **fields: Any) -> None:
            pass

        def repo_info(self, repository: str) -> SimpleNamespace:
            return SimpleNamespace(private=False)

    monkeypatch.setattr(push_to_hub, "HfApi", Api)
    with pytest.raises(PushError, match="the repository is public"):
        push_bundle(bundle.load(bundle_dir), "me/tiny")


class _UnreachableError(Exception):
    """An error of the HTTP client: neither one of the library's errors nor an OSError."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [(_UnreachableError("no network\nat all"), "no network"), (_UnreachableError(), "_UnreachableError")],
)
def test_failed_upload_is_one_line_with_the_repository(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    class Api:
        def create_repo(self, repository: str, **fields: Any) -> None:
            raise error

    monkeypatch.setattr(push_to_hub, "HfApi", Api)
    with pytest.raises(PushError, match=rf"^me/tiny: the bundle was not uploaded: {reason}; log in"):
        push_bundle(bundle.load(bundle_dir), "me/tiny")

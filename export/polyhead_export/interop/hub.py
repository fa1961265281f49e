"""Bundles on the hub, for those who are online."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi
from polyhead_bundle import Bundle

from polyhead_export.errors import ExportError

_FOLDER = "bundle"


class PushError(ExportError):
    """The hub did not take a bundle; what was written on disk stays."""

    def __init__(self, repository: str, reason: str) -> None:
        super().__init__(f"{repository}: the bundle was not uploaded: {reason}")


def push_bundle(bundle: Bundle, repository: str) -> str:
    """Uploads a bundle's files, in one commit, to the folder ``bundle`` of a private hub repository.

    The hub puts files of its own beside that folder, which a bundle may not hold.

    Args:
        bundle: The bundle.
        repository: ``OWNER/NAME``.

    Returns:
        The commit's address.

    Raises:
        PushError: The hub did not take it, or the repository is public.
    """
    api = HfApi()
    with _translated(repository):
        api.create_repo(repository, private=True, exist_ok=True)
        private = api.repo_info(repository).private
    if not private:
        raise PushError(repository, "the repository is public; make it private or name another")
    with _translated(repository):
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=bundle.path,
            path_in_repo=_FOLDER,
            commit_message=bundle.model_id,
            delete_patterns="*",
        )
    return str(commit.commit_url)


@contextmanager
def _translated(repository: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library's own errors, and those of the one that it asks the hub with
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PushError(repository, f"{reason}; log in with `hf auth login`") from error

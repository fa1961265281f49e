"""Uploads a bundle to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi
from polyhead_bundle import Bundle
from polyhead_training.errors import first_line

from polyhead_export.errors import ExportError

_FOLDER = "bundle"


class PushError(ExportError):
    """The hub rejected a bundle; the bundle on disk is unaffected."""

    def __init__(self, repository: str, reason: str) -> None:
        super().__init__(f"{repository}: the bundle was not uploaded: {reason}")


def push_bundle(bundle: Bundle, repository: str) -> str:
    """Uploads a bundle's files, in one commit, to the folder ``bundle`` of a private hub repository.

    The hub adds files of its own to the repository, which a bundle must not hold; hence the folder.

    Args:
        bundle: The bundle.
        repository: ``OWNER/NAME``; the repository is created if it does not exist.

    Returns:
        URL of the commit.

    Raises:
        PushError: The upload failed, or the repository is public.
    """
    api = HfApi()
    with _map_errors(repository):
        api.create_repo(repository, private=True, exist_ok=True)
        private = api.repo_info(repository).private
    if not private:
        raise PushError(repository, "the repository is public; make it private or name another")
    with _map_errors(repository):
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=bundle.path,
            path_in_repo=_FOLDER,
            commit_message=bundle.model_id,
            delete_patterns="*",
        )
    return str(commit.commit_url)


@contextmanager
def _map_errors(repository: str) -> Iterator[None]:
    """Converts every error inside the block into a ``PushError``."""
    try:
        yield
    except Exception as error:  # errors of the library, and of the HTTP client that it uses
        raise PushError(repository, f"{first_line(error)}; log in with `hf auth login`") from error

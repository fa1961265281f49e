"""Bundles on the hub, for those who are online."""

from __future__ import annotations

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from .bundle import Bundle
from .errors import ExportError


class PushError(ExportError):
    """The hub did not take a bundle; what was written on disk stays."""

    def __init__(self, repository: str, reason: str) -> None:
        super().__init__(f"{repository}: the hub did not take the bundle ({reason}); log in with `hf auth login`")


def push_bundle(bundle: Bundle, repository: str) -> str:
    """Uploads a bundle's files, in one commit, to a hub repository, which is made private when it is new.

    Args:
        bundle: The bundle.
        repository: ``OWNER/NAME``.

    Returns:
        The commit's address.

    Raises:
        PushError: The hub did not take it.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=bundle.path, commit_message=bundle.model_id, delete_patterns="*"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise PushError(repository, str(error).strip().splitlines()[0]) from error
    return str(commit.commit_url)

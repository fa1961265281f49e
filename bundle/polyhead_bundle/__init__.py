"""The bundle: polyhead's artifact, a closed directory of hashed files with one manifest. Standard library only.

Writing and reading are each other's mirror::

    files + Manifest --write--> .NAME.tmp-xxxx/ --fsync, rename--> NAME/ --load--> Bundle (every byte verified)

A bundle holds ``bundle.json`` and exactly the files that it lists. ``load`` compares every name, kind of file, size and
SHA-256 before it returns, so no parser of a model or a tokenizer ever sees a byte that the manifest does not vouch for.
"""

from .atomic_directory import named_failures, recover, replace_directory, staging_folder
from .errors import BundleError, FormatError, IntegrityError
from .manifest import (
    CARD,
    CONFIG,
    FORMAT_VERSION,
    MANIFEST_NAME,
    TOKENIZER,
    WEIGHTS,
    Check,
    Embedding,
    FileEntry,
    Fingerprints,
    Golden,
    Head,
    Manifest,
    Tensor,
    Variant,
    weights_name,
)
from .store import Bundle, fingerprint, load, require_replaceable, sha256_of, write

__all__ = [
    "CARD",
    "CONFIG",
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "TOKENIZER",
    "WEIGHTS",
    "Bundle",
    "BundleError",
    "Check",
    "Embedding",
    "FileEntry",
    "Fingerprints",
    "FormatError",
    "Golden",
    "Head",
    "IntegrityError",
    "Manifest",
    "Tensor",
    "Variant",
    "fingerprint",
    "load",
    "named_failures",
    "recover",
    "replace_directory",
    "require_replaceable",
    "sha256_of",
    "staging_folder",
    "weights_name",
    "write",
]

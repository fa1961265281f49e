"""The bundle: polyhead's artifact, a closed directory of hashed files with one manifest.

Only the verification of signatures requires more than the standard library.

``write`` and ``load`` are inverse operations::

    files + Manifest --write--> .NAME.tmp-xxxx/ --fsync, rename--> NAME/ --load--> Bundle (every byte verified)

A bundle holds ``bundle.json`` and exactly the files that it lists. ``load`` compares every name, file type, size and
SHA-256 before it returns, so no model or tokenizer parser ever sees a byte that the manifest does not cover.
"""

from .atomic_directory import add_path_to_os_errors, recover, replace_directory, staging_folder
from .errors import BundleError, FormatError, IntegrityError, SignatureError
from .manifest import (
    CARD,
    CONFIG,
    FORMAT_VERSION,
    MANIFEST_NAME,
    NOVELTY,
    TOKENIZER,
    WEIGHTS,
    Check,
    Embedding,
    FileEntry,
    Fingerprints,
    Golden,
    Head,
    HeadKind,
    Manifest,
    Tensor,
    Variant,
    external_data_name,
)
from .reference import HeadReference, Reference
from .signature import default_signature, verify_signature
from .store import Bundle, fingerprint, load, require_replaceable, sha256_of, write
from .trust import Abstention, CoveragePoint, Novelty, PredictionSets

__all__ = [
    "CARD",
    "CONFIG",
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "NOVELTY",
    "TOKENIZER",
    "WEIGHTS",
    "Abstention",
    "Bundle",
    "BundleError",
    "Check",
    "CoveragePoint",
    "Embedding",
    "FileEntry",
    "Fingerprints",
    "FormatError",
    "Golden",
    "Head",
    "HeadKind",
    "HeadReference",
    "IntegrityError",
    "Manifest",
    "Novelty",
    "PredictionSets",
    "Reference",
    "SignatureError",
    "Tensor",
    "Variant",
    "add_path_to_os_errors",
    "default_signature",
    "external_data_name",
    "fingerprint",
    "load",
    "recover",
    "replace_directory",
    "require_replaceable",
    "sha256_of",
    "staging_folder",
    "verify_signature",
    "write",
]
